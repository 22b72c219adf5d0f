import BLASKernels
import PEFTSupport
import TestSupport
import Testing

@testable import Tensors

/// Files of `torch.save`. What each holds, and which are to be refused, is in
/// Tests/Goldens/files/pickles.json, made by torch (generator/files.py).
struct TorchFileTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var isReadable: Bool
    var keys: [String]
    var path: String { TestData.golden("files/pickles/\(name).bin") }
    var testDescription: String { name }
  }

  static let cases: [Case] = {
    let file = TestData.golden("files/pickles.json")
    return
      (try? FileSystem.readJSON(file).object?.members.map { name, value in
        Case(
          name: name, isReadable: value["readable"] == true,
          keys: value["keys"]?.array?.compactMap(\.string) ?? [])
      }) ?? []
  }()

  @Test func allCasesAreThere() { #expect(Self.cases.count >= 26) }

  @Test(arguments: cases.filter(\.isReadable))
  func readsWhatTorchWrote(_ example: Case) throws {
    let file = try TorchFile(example.path)
    let expected = try SafetensorsFile(TestData.golden("files/pickles.safetensors"))
    var compared = 0
    for entry in file.entries {
      let key = "\(example.name).\(entry.name)"
      // Of the three hundred only some are in the expected file.
      guard let reference = expected[key] else {
        #expect(example.name == "many", "\(key) is not expected")
        continue
      }
      #expect(entry.shape == reference.shape && entry.type == reference.type, "\(key)")
      #expect(try file.bytes(entry.name) == expected.bytes(key), "\(key)")
      compared += 1
    }
    #expect(compared == expected.names.filter { $0.hasPrefix(example.name + ".") }.count)
    // Every key of the dictionary is accounted for, as a tensor, a dictionary or another value.
    let tops = (file.names + file.otherKeys).map { name in
      example.keys.first { name == $0 || name.hasPrefix($0 + ".") }
    }
    #expect(Set(tops) == Set(example.keys.map { $0 }))
  }

  /// torch's format before 1.6 holds the same tensor as `plain`.
  @Test func readsTheLegacyFormat() throws {
    let legacy = try TorchFile(TestData.golden("files/pickles/legacy.bin"))
    let plain = try TorchFile(TestData.golden("files/pickles/plain.bin"))
    #expect(legacy.names == ["a"])
    #expect(try legacy.bytes("a") == plain.bytes("a") && legacy["a"] == plain["a"])
  }

  static let refusals = [
    "call": "the pickle asks for 'posix.getcwd', which is refused. \(PickleMachine.advice)",
    "eval": "the pickle asks for '__builtin__.eval', which is refused. \(PickleMachine.advice)",
    "module":
      "the pickle asks for 'torch.nn.modules.linear.Linear', which is refused. "
      + PickleMachine.advice,
    "bare":
      "is a bare pickle, not a file of torch.save. Save it with torch.save, or as safetensors.",
    "cut": "not a valid zip file: it has no end: the file is cut. Obtain the file again.",
    "empty": "the file is empty. Save it with torch.save, or as safetensors.",
    "short-storage":
      "the storage '0' has 92 bytes, 96 were expected. Obtain the file again.",
    "no-storage": "the storage '0' is not in the file. Obtain the file again.",
    "no-pickle":
      "is a zip file without data.pkl, not one of torch.save. Obtain the file again.",
    "cut-pickle": "not a valid pickle: it is cut. Obtain the file again.",
    "big-endian":
      "its numbers have the byte order 'big', little was expected. "
      + "Save it on a little-endian machine, or as safetensors.",
    "beyond":
      "not a valid pickle: a tensor of shape [5, 6] with strides [6, 1] from 0 on lies beyond its "
      + "storage '0' of 24 elements. Obtain the file again.",
    "overflow":
      "not a valid pickle: a tensor of shape [4611686018427387904, 6] with strides [6, 1] from 0 on "
      + "lies beyond its storage '0' of 24 elements. Obtain the file again.",
  ]

  @Test(arguments: cases.filter { !$0.isReadable && $0.name != "legacy" })
  func refusesWithAReason(_ example: Case) throws {
    let error = #expect(throws: PEFTError.self) { try TorchFile(example.path) }
    let reason = try #require(Self.refusals[example.name], "no text for \(example.name)")
    #expect(error?.description == "\(example.path): \(reason)")
  }

  /// The LoRA paper's adapter, beside the same tensors as safetensors.
  @Test func readsARealFile() throws {
    guard let folder = TestData.path("adapters/loralib-roberta-base-mnli") else { return }
    let pickled = try TorchFile("\(folder)/roberta_base_lora_mnli.bin")
    let plain = try SafetensorsFile("\(folder)/roberta_base_lora_mnli.safetensors")
    #expect(pickled.entries.count == 52 && pickled.otherKeys.isEmpty)
    #expect(Set(pickled.names) == Set(plain.names))
    for name in plain.names {
      #expect(pickled[name] == plain[name])
      #expect(try pickled.bytes(name) == plain.bytes(name))
    }
  }

  // MARK: Zip

  @Test func zip64FieldsAreFollowed() throws {
    let folder = try TemporaryFolder()
    let members = try Self.members("plain")
    for wide in [false, true] {
      let path = try folder.write("x.bin", Zip.bytes(members, wide: wide))
      #expect(try TorchFile(path).names == ["a", "b"])
    }
  }

  @Test func wrongZipsAreNamed() throws {
    let folder = try TemporaryFolder()
    let members = try Self.members("plain")
    func fails(_ text: String, _ bytes: [UInt8]) throws {
      let path = try folder.write("x.bin", bytes)
      let error = #expect(throws: PEFTError.self) { try TorchFile(path) }
      #expect(error?.description.hasPrefix("\(path): \(text)") == true, "\(error!)")
    }
    try fails(
      "not a valid zip file: the checksum of its member 'plain/data/0' is wrong",
      Zip.bytes(members, wrongChecksum: "plain/data/0"))
    try fails(
      "the zip member 'plain/data.pkl' is compressed (method 8)", Zip.bytes(members, method: 8))
    try fails(
      "not a valid zip file: the member 'plain/data.pkl' is listed twice",
      Zip.bytes(members + members.prefix(1)))
    try fails(
      "the zip member 'plain/data.pkl' is encrypted", Zip.bytes(members, flags: 1))
  }

  // MARK: Fuzzing

  /// Whatever is done to a file, it is read or refused. A crash fails the whole run.
  @Test(arguments: ["plain", "views", "nested", "protocol-4", "shapes", "legacy", "ordered"])
  func damagedFilesAreReadOrRefused(_ name: String) throws {
    let folder = try TemporaryFolder()
    let whole = try FileSystem.read(TestData.golden("files/pickles/\(name).bin"))
    var random = SplitMix(state: 1)
    var refused = 0
    func check(_ bytes: [UInt8]) throws {
      do {
        let file = try TorchFile(folder.write("x.bin", bytes))
        for name in file.names { _ = try file.bytes(name) }
      } catch let error as PEFTError {
        #expect(error.location != nil)
        refused += 1
      }
    }
    let cuts = Array(stride(from: 0, to: whole.count, by: max(1, whole.count / 150)))
    for count in cuts { try check(Array(whole[..<count])) }
    #expect(refused == cuts.count)
    for _ in 0..<400 {
      var bytes = whole
      for _ in 0...random.below(2) {
        bytes[random.below(bytes.count)] ^= 1 << UInt8(random.below(8))
      }
      try check(bytes)
    }
  }

  /// Changes inside of the pickle, which the checksum would hide.
  @Test(arguments: ["plain", "views", "nested", "protocol-4", "extras", "ordered", "parameters"])
  func damagedPicklesAreReadOrRefused(_ name: String) throws {
    let members = try Self.members(name)
    let pickle = try #require(members.first { $0.name.hasSuffix("data.pkl") }).bytes
    let folder = try TemporaryFolder()
    var random = SplitMix(state: 2)
    func read(_ bytes: [UInt8]) throws {
      let changed = members.map { $0.name.hasSuffix("data.pkl") ? ($0.name, bytes) : $0 }
      guard let file = try? TorchFile(folder.write("x.bin", Zip.bytes(changed))) else { return }
      for name in file.names { _ = try file.bytes(name) }
    }
    // The machine alone is fast; where it finds a value the whole file is read too.
    for round in 0..<6000 {
      var bytes = pickle
      for _ in 0...random.below(3) {
        switch round % 4 {
        case 0: bytes[random.below(bytes.count)] ^= 1 << UInt8(random.below(8))
        case 1: bytes[random.below(bytes.count)] = UInt8(random.below(256))
        case 2: bytes.remove(at: random.below(bytes.count))
        default:
          bytes.insert(Self.codes[random.below(Self.codes.count)], at: random.below(bytes.count))
        }
      }
      var machine = PickleMachine(bytes)
      if (try? machine.run()) != nil, round % 8 < 4 { try read(bytes) }
    }
  }

  /// Operations at random, without any sense.
  @Test func anyProgramEnds() {
    var random = SplitMix(state: 3)
    for _ in 0..<5000 {
      var machine = PickleMachine(
        (0..<random.below(60)).map { _ in Self.codes[random.below(Self.codes.count)] } + [0x2E])
      _ = try? machine.run()
    }
  }

  @Test func nestingAndRepetitionAreBounded() throws {
    let folder = try TemporaryFolder()
    func fails(_ pickle: [UInt8], _ text: String) throws {
      let path = try folder.write("x.bin", Zip.bytes([("x/data.pkl", pickle)]))
      let error = #expect(throws: PEFTError.self) { try TorchFile(path) }
      #expect(error?.message.contains(text) == true, "\(error!)")
    }
    // A million tuples in one another, and a million dictionaries.
    try fails(
      [0x80, 2, 0x29] + [UInt8](repeating: 0x85, count: 1_000_000) + [0x2E], "holds a tuple")
    var deep: [UInt8] = [0x80, 2, 0x7D]
    for _ in 0..<100_000 { deep += [0x58, 1, 0, 0, 0, 0x61, 0x7D] }
    deep += [UInt8](repeating: 0x73, count: 100_000) + [0x2E]
    try fails(deep, "too deep")
    // A dictionary that contains itself.
    try fails(
      [0x80, 2, 0x7D, 0x71, 0, 0x58, 1, 0, 0, 0, 0x61, 0x68, 0, 0x73, 0x2E], "more than once")
    // Lengths that claim more than there is.
    for head in [[0x58], [0x8D], [0x8B], [0x8E], [0x95]] as [[UInt8]] {
      try fails([0x80, 4] + head + [UInt8](repeating: 0xFF, count: 8), "it is cut")
    }
  }

  /// A short pickle that hands one list to call after call.
  @Test func copiesOfAListAreBounded() throws {
    func refused(_ pickle: [UInt8]) {
      var machine = PickleMachine(pickle)
      let error = #expect(throws: PEFTError.self) { try machine.run() }
      #expect(error?.code == .malformedFile)
      #expect(error?.message.contains("than it has bytes (\(pickle.count))") == true, "\(error!)")
    }
    let constructor = Array("ccollections\nOrderedDict\n".utf8) + [0x71, 0]
    func pairs(_ count: Int) -> [UInt8] {
      var list: [UInt8] = [0x5D, 0x71, 1, 0x28]
      for key in 0..<count { list += [0x4D, UInt8(key & 255), UInt8(key >> 8), 0x4E, 0x86] }
      return list + [0x65]
    }
    // OrderedDict(list) and a pop, a thousand times: 7 bytes for a thousand members.
    var calls: [UInt8] = [0x80, 2] + constructor + pairs(1000)
    for _ in 0..<1000 { calls += [0x68, 0, 0x68, 1, 0x85, 0x52, 0x30] }
    refused(calls + [0x2E])
    // Once is what Python 2 wrote.
    var honest = PickleMachine(
      [0x80, 2] + constructor + pairs(1000) + [0x30, 0x68, 1, 0x85, 0x52, 0x2E])
    guard case .dictionary(let place) = try honest.run() else {
      Issue.record("no dictionary")
      return
    }
    #expect(honest.dictionaries[place].members.count == 1000)

    // Tensors of a thousand dimensions of one element each.
    var ones: [UInt8] = [0x28]
    for _ in 0..<1000 { ones += [0x4B, 1] }
    var views: [UInt8] = [0x80, 2] + TorchPickle.rebuild
    views += [0x71, 2] + TorchPickle.storage(4)
    views += [0x71, 3] + ones + [0x74, 0x71, 4]
    for _ in 0..<1000 {
      views += [0x68, 2, 0x28, 0x68, 3, 0x4B, 0, 0x68, 4, 0x68, 4, 0x74, 0x52, 0x30]
    }
    refused(views + [0x2E])
  }

  @Test func namesOfTensorsAreBounded() throws {
    let folder = try TemporaryFolder()
    func file(_ length: Int) throws -> TorchFile {
      var pickle: [UInt8] = [0x80, 2, 0x7D, 0x58, UInt8(length & 255), UInt8(length >> 8), 0, 0]
      pickle += [UInt8](repeating: 0x61, count: length)
      pickle += [0x7D, 0x4B, 7, 0x4E, 0x73, 0x73, 0x2E]
      return try TorchFile(folder.write("x.bin", Zip.bytes([("x/data.pkl", pickle)])))
    }
    #expect(try file(1022).otherKeys.map(\.utf8.count) == [1024])
    let error = #expect(throws: PEFTError.self) { try file(1023) }
    #expect(error?.message.contains("has 1025 bytes, at most 1024 were expected") == true)
  }

  /// An empty tensor of 2¹²⁴ columns, and strides of which no step is taken.
  @Test func extentsAndStridesMayBeAnything() throws {
    let folder = try TemporaryFolder()
    func file(_ shape: [Int], _ strides: [Int]) throws -> TorchFile {
      var pickle: [UInt8] = [0x80, 2, 0x7D, 0x58, 1, 0, 0, 0, 0x61]
      pickle += TorchPickle.tensor(3, shape, strides) + [0x73, 0x2E]
      return try TorchFile(
        folder.write(
          "x.bin", Zip.bytes([("x/data.pkl", pickle), ("x/data/0", Array(1...12))])))
    }
    for strides in [[0, 0, 0], [1 << 62, 1, 1]] {
      let error = #expect(throws: PEFTError.self) { try file([0, 1 << 62, 1 << 62], strides) }
      #expect(error?.code == .malformedFile)
    }
    #expect(try file([0, 1 << 30], [0, 0]).bytes("a") == [])
    #expect(try file([3, 1], [1, .max]).bytes("a") == Array(1...12))
    #expect(try file([2, 1], [2, .max]).bytes("a") == [1, 2, 3, 4, 9, 10, 11, 12])
  }

  /// Every operation that the machine knows, and some that it does not.
  static let codes: [UInt8] =
    Array("(.012)tl]ae}dsucRbQNKMJGXUTCBqrhjipgIoOPS".utf8)
    + [0x80, 0x81, 0x82, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B, 0x8C, 0x8D, 0x8E, 0x93, 0x94]
    + [0x95, 0x96, 0, 1, 2, 3, 4]

  /// The members of a golden file.
  static func members(_ name: String) throws -> [(name: String, bytes: [UInt8])] {
    let zip = try ZipArchive(MappedFile(path: TestData.golden("files/pickles/\(name).bin")))
    return try zip.members.map { ($0.name, try zip.bytes($0)) }
  }
}

/// Pieces of pickles, as torch writes them.
private enum TorchPickle {
  static let rebuild = Array("ctorch._utils\n_rebuild_tensor_v2\n".utf8)

  static func text(_ text: String) -> [UInt8] {
    [0x58, UInt8(text.utf8.count), 0, 0, 0] + Array(text.utf8)
  }

  static func number(_ value: Int) -> [UInt8] {
    [0x8A, 8] + (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
  }

  static func tuple(_ values: [Int]) -> [UInt8] {
    var bytes: [UInt8] = [0x28]
    for value in values { bytes += number(value) }
    return bytes + [0x74]
  }

  /// The storage '0' of some floats.
  static func storage(_ count: Int) -> [UInt8] {
    var bytes: [UInt8] = [0x28] + text("storage")
    bytes += Array("ctorch\nFloatStorage\n".utf8) + text("0") + text("cpu")
    return bytes + number(count) + [0x74, 0x51]
  }

  static func tensor(_ count: Int, _ shape: [Int], _ strides: [Int]) -> [UInt8] {
    var bytes: [UInt8] = rebuild + [0x28] + storage(count)
    bytes += number(0) + tuple(shape) + tuple(strides)
    return bytes + [0x74, 0x52]
  }
}

/// Writes stored zips, right and wrong ones.
private enum Zip {
  static func bytes(
    _ members: [(name: String, bytes: [UInt8])], wide: Bool = false, wrongChecksum: String? = nil,
    method: UInt64 = 0, flags: UInt64 = 0
  ) throws -> [UInt8] {
    func number(_ value: UInt64, _ size: Int) -> [UInt8] {
      (0..<size).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }
    var data: [UInt8] = []
    var directory: [UInt8] = []
    for (name, content) in members {
      let start = UInt64(data.count)
      let size = UInt64(content.count)
      let checksum = UInt64(crc(content)) ^ (name == wrongChecksum ? 1 : 0)
      let label = Array(name.utf8)
      data += number(0x0403_4B50, 4) + number(20, 2) + number(flags, 2) + number(method, 2)
      data += number(0, 4) + number(checksum, 4) + number(size, 4) + number(size, 4)
      data += number(UInt64(label.count), 2) + number(0, 2) + label + content
      // With zip64 all three numbers are in the extra field, after one of another kind.
      let narrow = wide ? UInt64(0xFFFF_FFFF) : nil
      let extra =
        wide
        ? number(0x7777, 2) + number(2, 2) + [9, 9] + number(1, 2) + number(24, 2)
          + number(size, 8) + number(size, 8) + number(start, 8)
        : []
      directory += number(0x0201_4B50, 4) + number(20, 2) + number(20, 2) + number(flags, 2)
      directory += number(method, 2) + number(0, 4) + number(checksum, 4)
      directory += number(narrow ?? size, 4) + number(narrow ?? size, 4)
      directory += number(UInt64(label.count), 2) + number(UInt64(extra.count), 2) + number(0, 10)
      directory += number(narrow ?? start, 4) + label + extra
    }
    let start = UInt64(data.count)
    let length = UInt64(directory.count)
    let count = UInt64(members.count)
    data += directory
    if wide {
      let record = UInt64(data.count)
      data += number(0x0606_4B50, 4) + number(44, 8) + number(45, 2) + number(45, 2)
      data += number(0, 8) + number(count, 8) + number(count, 8) + number(length, 8)
      data += number(start, 8)
      data += number(0x0706_4B50, 4) + number(0, 4) + number(record, 8) + number(1, 4)
    }
    data += number(0x0605_4B50, 4) + number(0, 4) + number(wide ? 0xFFFF : count, 2)
    data += number(wide ? 0xFFFF : count, 2) + number(wide ? 0xFFFF_FFFF : length, 4)
    return data + number(wide ? 0xFFFF_FFFF : start, 4) + number(0, 2)
  }

  /// The CRC-32, bit by bit.
  static func crc(_ bytes: [UInt8]) -> UInt32 {
    ~bytes.reduce(UInt32.max) { crc, byte in
      (0..<8).reduce(crc ^ UInt32(byte)) { value, _ in
        value >> 1 ^ (value & 1 == 1 ? 0xEDB8_8320 : 0)
      }
    }
  }
}

/// A small generator of random numbers (SplitMix64), so that every run does the same.
struct SplitMix {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}
