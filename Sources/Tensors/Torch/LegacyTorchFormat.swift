import BLASKernels
import PEFTSupport

/// torch's format before 1.6: five pickles, then the storages one after the other.
///
/// The pickles are a magic number, the protocol, a description of the machine, the value, and the
/// keys of the storages in their order. Each storage is its count of elements in eight bytes, and
/// the elements (`torch/serialization.py`, `_legacy_save`).
enum LegacyTorchFormat {
  /// Protocol, and the magic number 0x1950a86a20f9469cfc6c as a long of ten bytes.
  private static let signature: [UInt8] = [
    0x8A, 10, 0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19, 0x2E,
  ]

  static func begins(_ file: MappedFile) -> Bool {
    file.byteCount >= 2 + signature.count && file.bytes(0..<1) == [0x80]
      && file.bytes(2..<2 + signature.count) == signature
  }

  static func read(_ file: MappedFile) throws(PEFTError) -> TorchContent {
    // Where the pickles end is known only when they have been read.
    let head = file.bytes(0..<min(file.byteCount, TorchContent.largestPickle))
    var version = PickleMachine(head, from: 2 + signature.count)
    guard case .int(1001) = try version.run() else {
      throw PEFTError(
        .unsupported, "its version of torch's older format is unknown", remedy: PickleMachine.advice
      )
    }
    var system = PickleMachine(head, from: version.position)
    try checkByteOrder(try system.run(), system)
    var machine = PickleMachine(head, from: system.position)
    let root = try machine.run()
    var keys = PickleMachine(head, from: machine.position)
    guard case .list(let place) = try keys.run() else {
      throw PickleMachine.malformed("the keys of its storages are no list")
    }
    var position = keys.position
    var found: [String: Range<Int>] = [:]
    var storages: [String: TorchStorage] = [:]
    for storage in machine.storages {
      if let other = storages[storage.key],
        other.type != storage.type || other.count != storage.count
      {
        throw PickleMachine.malformed("the storage '\(storage.key)' is described in two ways")
      }
      storages[storage.key] = storage
    }
    let fields = FileFields(file)
    for key in keys.lists[place] {
      guard case .string(let key) = key, let storage = storages[key] else {
        throw PickleMachine.malformed("a storage in its list is not described")
      }
      let size = storage.count * storage.type.byteCount
      guard try fields.u64(position) == UInt64(storage.count),
        size <= file.byteCount - position - 8
      else {
        throw PEFTError(
          .malformedFile, "the storage '\(key)' is cut, or not of \(storage.count) elements",
          remedy: "Obtain the file again.")
      }
      found[key] = position + 8..<position + 8 + size
      position += 8 + size
    }
    var ranges: [Range<Int>] = []
    for storage in machine.storages {
      guard let range = found[storage.key] else {
        throw PEFTError(
          .malformedFile, "the storage '\(storage.key)' is not in the file",
          remedy: "Obtain the file again.")
      }
      ranges.append(range)
    }
    return TorchContent(machine: machine, root: root, ranges: ranges)
  }

  private static func checkByteOrder(
    _ system: PickleValue, _ machine: PickleMachine
  ) throws(PEFTError) {
    if case .dictionary(let place) = system {
      for (key, value) in machine.dictionaries[place].members where key == .string("little_endian")
      {
        if case .bool(true) = value { return }
      }
    }
    throw PEFTError(
      .unsupported, "its numbers are not little-endian",
      remedy: "Save it on a little-endian machine, or as safetensors.")
  }
}
