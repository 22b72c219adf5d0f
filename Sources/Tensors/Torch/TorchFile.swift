import BLASKernels
import PEFTSupport

/// A file of `torch.save` with tensors in dictionaries: `pytorch_model.bin`, `adapter_model.bin`.
///
/// Nothing in it is executed: see ``PickleMachine``. Tensors of inner dictionaries are named by
/// their path, `model.weight`. Structure, bounds and checksums are checked when it is opened. Both
/// of torch's formats are read: the zip of 1.6 and later, and the sequence of pickles before.
public struct TorchFile: TensorFile {
  /// The file's path.
  public let path: String
  /// The tensors, in the order of the dictionary.
  public let entries: [TensorEntry]
  /// Paths of the values that are no tensors.
  public let otherKeys: [String]
  private let whole: FileWindow
  private let sources: [Source]
  private let index: [String: Int]

  private struct Source {
    var tensor: TorchTensor
    /// Where the storage's bytes are.
    var range: Range<Int>
  }

  /// Opens a file.
  ///
  /// - Throws: ``PEFTError``: `fileNotFound`, `fileAccess`, `malformedFile`, or `unsupported` when
  ///   it holds anything but tensors and plain values, naming the file and what was refused.
  public init(_ path: String) throws(PEFTError) {
    self.path = path
    let file = try MappedFile(path: path)
    do throws(PEFTError) {
      let content = try TorchContent(file)
      let names = try TensorNames(content.root, content.machine)
      otherKeys = names.others
      var entries: [TensorEntry] = []
      var sources: [Source] = []
      var index: [String: Int] = [:]
      for (name, place) in names.tensors {
        let tensor = content.machine.tensors[place]
        guard index.updateValue(entries.count, forKey: name) == nil else {
          throw PickleMachine.malformed("two tensors are named '\(name)'")
        }
        entries.append(
          TensorEntry(
            name: name, type: content.machine.storages[tensor.storage].type, shape: tensor.shape))
        sources.append(Source(tensor: tensor, range: content.ranges[tensor.storage]))
      }
      self.entries = entries
      self.sources = sources
      self.index = index
    } catch {
      throw error.located(at: path)
    }
    whole = FileWindow(file)
  }

  /// The entry of a name.
  public subscript(name: String) -> TensorEntry? { index[name].map { entries[$0] } }

  /// The elements in row-major order; a window of the file where they lie so.
  ///
  /// - Throws: ``PEFTError`` `missingTensor`.
  public func content(_ name: String) throws(PEFTError) -> Slice<UInt8> {
    let entry = try entry(name)
    let source = sources[index[name]!]
    let size = entry.type.byteCount
    guard source.tensor.isContiguous else {
      let bytes = whole.slice[source.range].array
      return Slice(source.tensor.gathered(bytes, elementSize: size))
    }
    let start = source.range.lowerBound + source.tensor.offset * size
    return whole.aligned(start..<start + entry.byteCount, to: size)
  }
}

/// A torch file's pickle, and where its storages are.
struct TorchContent {
  /// The machine that ran the pickle.
  let machine: PickleMachine
  /// The pickle's value.
  let root: PickleValue
  /// The bytes of each of the machine's storages.
  let ranges: [Range<Int>]

  /// The largest pickle that is read; it holds names and shapes, not numbers.
  static let largestPickle = 1 << 28

  /// Reads either format.
  init(_ file: MappedFile) throws(PEFTError) {
    if ZipArchive.begins(file) {
      try self.init(zip: ZipArchive(file))
    } else if LegacyTorchFormat.begins(file) {
      self = try LegacyTorchFormat.read(file)
    } else {
      let start = file.byteCount > 0 ? file.bytes(0..<1)[0] : 0
      throw PEFTError(
        .malformedFile,
        file.byteCount == 0
          ? "the file is empty"
          : start == 0x80
            ? "is a bare pickle, not a file of torch.save"
            : "is not a file of torch.save: it is no zip file and has not the older format's "
              + "signature",
        remedy: "Save it with torch.save, or as safetensors.")
    }
  }

  init(machine: PickleMachine, root: PickleValue, ranges: [Range<Int>]) {
    self.machine = machine
    self.root = root
    self.ranges = ranges
  }

  private init(zip: ZipArchive) throws(PEFTError) {
    // All members are in one folder, named after the file when it was saved.
    let pickles = zip.members.filter { $0.name == "data.pkl" || $0.name.hasSuffix("/data.pkl") }
    guard let pickle = pickles.min(by: { $0.name.utf8.count < $1.name.utf8.count }) else {
      throw PEFTError(
        .malformedFile, "is a zip file without data.pkl, not one of torch.save",
        remedy: "Obtain the file again.")
    }
    let folder = String(pickle.name.dropLast("data.pkl".count))
    if let order = zip[folder + "byteorder"] {
      let text = String(decoding: try zip.bytes(order), as: UTF8.self)
      guard text == "little" else {
        throw PEFTError(
          .unsupported, "its numbers have the byte order '\(text)', little was expected",
          remedy: "Save it on a little-endian machine, or as safetensors.")
      }
    }
    guard pickle.range.count <= Self.largestPickle else {
      throw ZipArchive.malformed("data.pkl has \(pickle.range.count) bytes")
    }
    var machine = PickleMachine(try zip.bytes(pickle))
    root = try machine.run()
    var ranges: [Range<Int>] = []
    var checked: Set<String> = []
    for storage in machine.storages {
      guard let member = zip[folder + "data/" + storage.key] else {
        throw PEFTError(
          .malformedFile, "the storage '\(storage.key)' is not in the file",
          remedy: "Obtain the file again.")
      }
      let needed = storage.count * storage.type.byteCount
      guard member.range.count >= needed else {
        throw PEFTError(
          .malformedFile,
          "the storage '\(storage.key)' has \(member.range.count) bytes, \(needed) were expected",
          remedy: "Obtain the file again.")
      }
      if checked.insert(storage.key).inserted { try zip.check(member) }
      ranges.append(member.range.lowerBound..<member.range.lowerBound + needed)
    }
    self.machine = machine
    self.ranges = ranges
  }
}

/// The tensors of nested dictionaries with their paths.
private struct TensorNames {
  var tensors: [(name: String, tensor: Int)] = []
  var others: [String] = []
  private var seen: Set<Int> = []
  private static let longestName = 1024

  init(_ root: PickleValue, _ machine: PickleMachine) throws(PEFTError) {
    guard case .dictionary(let place) = root else {
      throw PEFTError(
        .unsupported, "holds \(root.kindName), a dictionary of tensors was expected",
        remedy: PickleMachine.advice)
    }
    try add(place, prefix: "", depth: 0, machine)
  }

  private mutating func add(
    _ place: Int, prefix: String, depth: Int, _ machine: PickleMachine
  ) throws(PEFTError) {
    // One that is met twice could be met any number of times, or contain itself.
    guard seen.insert(place).inserted, depth < 32 else {
      throw PEFTError(
        .unsupported, "the dictionary '\(prefix)' occurs more than once, or too deep inside others",
        remedy: PickleMachine.advice)
    }
    for (key, value) in machine.dictionaries[place].members {
      let name = prefix.isEmpty ? key.text : "\(prefix).\(key.text)"
      // One long name may be the beginning of any number of others.
      guard name.utf8.count <= Self.longestName else {
        throw PickleMachine.malformed(
          "the name '\(name.prefix(40))…' has \(name.utf8.count) bytes, at most "
            + "\(Self.longestName) were expected")
      }
      switch value {
      case .tensor(let tensor): tensors.append((name, tensor))
      case .dictionary(let inner): try add(inner, prefix: name, depth: depth + 1, machine)
      default: others.append(name)
      }
    }
  }
}
