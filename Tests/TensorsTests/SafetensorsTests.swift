import BLASKernels
import PEFTSupport
import TestSupport
import Testing

@testable import Tensors

/// Reading and writing safetensors files. The malformed ones are made by hand from the format's
/// description: eight bytes of header length, a JSON header, the data.
struct SafetensorsTests {
  let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  private func file(_ header: String, data: Int, length: Int? = nil) throws -> String {
    let json = Array(header.utf8)
    let claimed = length ?? json.count
    let size = (0..<8).map { UInt8(truncatingIfNeeded: claimed >> (8 * $0)) }
    return try folder.write(
      "a.safetensors", size + json + [UInt8](repeating: 0, count: data))
  }

  @Test(arguments: ElementType.allCases)
  func everyTypeIsCopiedToTheByte(_ type: ElementType) throws {
    let bytes = (0..<6 * type.byteCount).map { UInt8(truncatingIfNeeded: $0 &* 37) }
    let path = folder("a.safetensors")
    try SafetensorsWriter.write(
      [
        SafetensorsItem("x", shape: [2, 3], type: type, bytes: bytes),
        // A one-byte neighbour, so that the windows of wider types need not be aligned.
        SafetensorsItem("a", shape: [1], type: .uint8, bytes: [1]),
      ], to: path, metadata: ["k": "v"])
    let file = try SafetensorsFile(path)
    #expect(file.metadata == ["k": "v"])
    let entry = try file.entry("x")
    #expect(entry.type == type && entry.shape == [2, 3] && entry.count == 6)
    #expect(try file.bytes("x") == bytes)
  }

  @Test func floatsReadBack() throws {
    let x = numbers([3, 5])
    let path = folder("a.safetensors")
    try SafetensorsWriter.write(
      [
        SafetensorsItem("f32", x), SafetensorsItem("bf16", x, as: .bfloat16),
        SafetensorsItem("f16", x, as: .float16), SafetensorsItem("scalar", Tensor(2.5)),
        SafetensorsItem("empty", Tensor.zeros([0, 4])),
        SafetensorsItem(
          "f64", shape: [2], type: .float64,
          bytes: [1.5, -0.25].withUnsafeBytes { (pointer: UnsafeRawBufferPointer) in Array(pointer)
          }),
      ], to: path)
    let file = try SafetensorsFile(path)
    #expect(file.metadata == ["format": "pt"])
    #expect(try file.tensor("f32").scalars == x.scalars)
    #expect(try file.tensor("scalar").shape == [] && file.tensor("scalar").item == 2.5)
    #expect(try file.tensor("empty").shape == [0, 4])
    #expect(try file.tensor("f64").scalars == [1.5, -0.25])
    // bf16 has 8 bits of precision, f16 eleven; rounding errs by half a unit.
    #expect(error(try file.tensor("bf16"), x.doubles) < 1 / 256)
    #expect(error(try file.tensor("f16"), x.doubles) < 1 / 2048)
    #expect(try file.matrix("bf16").format == "bfloat16")
    #expect(try file.matrix("bf16").dequantized().scalars == file.tensor("bf16").scalars)
    #expect(try file.matrix("f16").format == "float16")
    #expect(try file.matrix("f32").format == "float32")
    #expect(try file.matrix("f64x", orThrow: "the tensor 'f64x' is missing"))
    #expect(try file.matrix("f64", orThrow: "'f64' has shape [2], a matrix was expected"))
  }

  @Test func windowsOfAFileAreNotWrittenTo() throws {
    let path = folder("a.safetensors")
    try SafetensorsWriter.write([SafetensorsItem("x", numbers([4]))], to: path)
    let file = try SafetensorsFile(path)
    var x = try file.tensor("x")
    let p = Parameter(x)
    x.withMutableSlice { $0.fill(1) }
    p.update { $0.withMutableSlice { $0.fill(2) } }
    #expect(try file.tensor("x").scalars == numbers([4]).scalars)
    // A file that is replaced keeps its old content for those who hold it.
    try SafetensorsWriter.write([SafetensorsItem("x", Tensor.zeros([4]))], to: path)
    #expect(try file.tensor("x").scalars == numbers([4]).scalars)
    #expect(try SafetensorsFile(path).tensor("x").scalars == [0, 0, 0, 0])
  }

  @Test func integersReadBack() throws {
    let path = folder("a.safetensors")
    try SafetensorsWriter.write(
      [
        SafetensorsItem("ids", shape: [2, 2], integers: [1, -100, 3, 4]),
        SafetensorsItem("wide", shape: [1], integers: [1 << 40]),
        SafetensorsItem("mask", shape: [3], type: .bool, bytes: [1, 0, 1]),
        SafetensorsItem("i32", shape: [1], type: .int32, bytes: [255, 255, 255, 255]),
        SafetensorsItem("x", numbers([2])),
      ], to: path)
    let file = try SafetensorsFile(path)
    let (shape, values) = try file.integers("ids")
    #expect(shape == [2, 2] && values == [1, -100, 3, 4])
    #expect(try file.integers("mask").values == [1, 0, 1])
    #expect(try file.integers("i32").values == [-1])
    for (name, message) in [
      ("wide", "'wide' holds 1099511627776, beyond 32 bits"),
      ("x", "'x' has type F32, integers were expected"),
    ] {
      let error = #expect(throws: PEFTError.self) { try file.integers(name) }
      #expect(error?.message == message && error?.location == path)
    }
    let error = #expect(throws: PEFTError.self) { try file.tensor("ids") }
    #expect(error?.message == "'ids' has type I64, floats were expected")
    let near = #expect(throws: PEFTError.self) { try file.tensor("id") }
    #expect(near?.description == "\(path): the tensor 'id' is missing. The file has 'ids'.")
  }

  /// The reference implementation orders by descending alignment, then by name, and pads the
  /// header with spaces to a multiple of eight.
  @Test func filesAreLaidOutAsTheReferenceDoes() throws {
    let path = folder("a.safetensors")
    let items = [
      SafetensorsItem("b", Tensor(1)), SafetensorsItem("z", shape: [1], integers: [1]),
      SafetensorsItem("a", Tensor(2)), SafetensorsItem("h", Tensor(3), as: .bfloat16),
    ]
    try SafetensorsWriter.write(items, to: path)
    let file = try SafetensorsFile(path)
    #expect(file.names == ["z", "a", "b", "h"])
    #expect(file.entries.map(\.byteCount) == [8, 4, 4, 2])
    let bytes = try FileSystem.read(path)
    #expect(Int(bytes[0]) % 8 == 0)
    try SafetensorsWriter.write(items.reversed(), to: path)
    #expect(try FileSystem.read(path) == bytes)
  }

  @Test func failedWriteLeavesNothing() throws {
    let error = #expect(throws: PEFTError.self) {
      try SafetensorsWriter.write(
        [SafetensorsItem("x", numbers([4]))], to: folder("missing/a.safetensors"))
    }
    #expect(error?.code == .fileNotFound)
    #expect(folder.names.isEmpty)
  }

  static let a = #""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#

  @Test(arguments: [
    (
      "{\(a)}", 7,
      "the data of 'a' ends at byte 8, but the file has 7 bytes of data: it is truncated"
    ),
    ("{\(a)}", 9, "1 bytes after the last tensor belong to none"),
    ("{}", 3, "3 bytes after the last tensor belong to none"),
    (
      #"{\#(a),"b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}}"#, 10,
      "the data of 'b' overlaps that of another tensor"
    ),
    (
      #"{\#(a),"b":{"dtype":"U8","shape":[1],"data_offsets":[10,11]}}"#, 11,
      "2 bytes before 'b' belong to no tensor"
    ),
    (
      #"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8,
      "'a' has 8 bytes, but its shape [3] of F32 needs 12"
    ),
    (
      #"{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,8]}}"#, 8,
      "'a' has 8 bytes, but its shape [2] of BF16 needs 4"
    ),
    (
      #"{"a":{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}}"#, 8,
      "'a' has the unknown dtype 'Q4'"
    ),
    (#"{"a":{"shape":[2],"data_offsets":[0,8]}}"#, 8, "'a' has no dtype"),
    (#"{"a":{"dtype":"F32","data_offsets":[0,8]}}"#, 8, "'a' has no shape"),
    (
      #"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8,
      "'a' has a shape that is not a list of sizes"
    ),
    (
      #"{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}"#, 8,
      "'a' has a shape that is not a list of sizes"
    ),
    (
      #"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#, 8,
      "the shape of 'a' is too large"
    ),
    // Empty, but a matrix of it would have 2¹²⁴ columns.
    (
      #"{"a":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],"data_offsets":[0,0]}}"#,
      0, "the shape of 'a' is too large"
    ),
    (#"{"a":{"dtype":"F32","shape":[2]}}"#, 8, "'a' has no valid data_offsets"),
    (
      #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8,
      "'a' has no valid data_offsets"
    ),
    (
      #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}"#, 8,
      "'a' has no valid data_offsets"
    ),
    (
      #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999999999999999]}}"#, 8,
      "'a' has no valid data_offsets"
    ),
    (
      #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[9223372036854775800,9223372036854775807]}}"#,
      8,
      "the data of 'a' ends at byte 9223372036854775807, but the file has 8 bytes of data: "
        + "it is truncated"
    ),
    ("{\(a),\(a)}", 8, "the tensor 'a' is listed twice"),
    (#"{"a":7}"#, 0, "the header's entry 'a' is an integer, not an object"),
    (#"{"__metadata__":{"k":1}}"#, 0, "metadata 'k' is an integer, not a string"),
  ])
  func malformedHeadersAreRefused(_ header: String, _ data: Int, _ message: String) throws {
    let path = try file(header, data: data)
    let error = #expect(throws: PEFTError.self) { try SafetensorsFile(path) }
    #expect(error?.code == .malformedFile)
    #expect(
      error?.description
        == "\(path): not a valid safetensors file: \(message). Obtain the file again.")
  }

  @Test(arguments: [
    ("hello", "the header is not a JSON object"), ("[]", "the header is not a JSON object"),
    ("", "the header is not a JSON object"),
    ("{} x", "not valid JSON: expected the end of the JSON text, found 'x' at byte 3"),
    (#"{"a":{"#, "not valid JSON: expected a member name in quotes, found the end at byte 6"),
  ])
  func headersThatAreNoJSONAreRefused(_ header: String, _ message: String) throws {
    let path = try file(header, data: 0)
    let error = #expect(throws: PEFTError.self) { try SafetensorsFile(path) }
    #expect(error?.code == .malformedFile)
    #expect(error?.location == path && error?.message.hasSuffix(message) == true)
  }

  @Test func headerLengthIsCheckedAgainstTheFile() throws {
    for (length, message) in [
      (1000, "its header claims 1000 bytes, the file has 10"),
      (3, "its header claims 3 bytes, the file has 10"),
      (-1, "its header claims 18446744073709551615 bytes, the file has 10"),
      (1 << 62, "its header claims 4611686018427387904 bytes, the file has 10"),
    ] {
      let path = try file("{}", data: 0, length: length)
      let error = #expect(throws: PEFTError.self) { try SafetensorsFile(path) }
      #expect(error?.message == "not a valid safetensors file: \(message)")
    }
    for size in [0, 7] {
      let path = try folder.write("short", [UInt8](repeating: 0, count: size))
      let error = #expect(throws: PEFTError.self) { try SafetensorsFile(path) }
      #expect(
        error?.message == "not a valid safetensors file: \(size) bytes are too few for a header")
    }
    let missing = #expect(throws: PEFTError.self) { try SafetensorsFile(folder("none")) }
    #expect(missing?.code == .fileNotFound)
    #expect(throws: PEFTError.self) { try SafetensorsFile(folder.path) }
  }

  // MARK: Folders of weights

  @Test func shardsAreReadThroughTheirIndex() throws {
    try SafetensorsWriter.write([SafetensorsItem("a", Tensor(1))], to: folder("1.safetensors"))
    try SafetensorsWriter.write(
      [SafetensorsItem("b", Tensor(2)), SafetensorsItem("c", Tensor(3))],
      to: folder("2.safetensors"))
    let index = "model.safetensors.index.json"
    func open(_ text: String) throws -> ModelWeights {
      _ = try folder.write(index, text)
      return try ModelWeights(folder: folder.path)
    }
    let weights = try open(
      #"{"weight_map": {"c": "2.safetensors", "a": "1.safetensors", "b": "2.safetensors"}}"#)
    #expect(weights.names == ["a", "b", "c"])
    #expect(try weights.file(of: "c")?.tensor("c").item == 3)
    #expect(weights["b"]?.shape == [] && weights["d"] == nil)
    // transformers reads all tensors of a shard, whatever the index lists.
    #expect(try open(#"{"weight_map": {"c": "2.safetensors"}}"#).names == ["b", "c"])
    try SafetensorsWriter.write(
      [SafetensorsItem("a", Tensor(1)), SafetensorsItem("b", Tensor(4))],
      to: folder("4.safetensors")
    )
    let chosen =
      #"{"weight_map": {"a": "4.safetensors", "b": "4.safetensors", "c": "2.safetensors"}}"#
    #expect(try open(chosen).file(of: "b")?.tensor("b").item == 4)
    let path = folder(index)
    for (text, message) in [
      (
        #"{"weight_map": {"a": "4.safetensors", "c": "2.safetensors"}}"#,
        "\(folder("2.safetensors")): the tensor 'b' is in \(folder("4.safetensors")) too, and the "
          + "index does not say which counts"
      ),
      (
        #"{"weight_map": {"a": "3.safetensors"}}"#,
        "\(folder("3.safetensors")): cannot open: No such file or directory"
      ),
      (
        #"{"weight_map": {"a": "2.safetensors"}}"#,
        "\(folder("2.safetensors")): the tensor 'a' is missing"
      ),
      (
        #"{"weight_map": {"a": "../1.safetensors"}}"#,
        "\(path): 'a' is not mapped to a file name"
      ),
      (#"{"weight_map": {"a": 1}}"#, "\(path): 'a' is not mapped to a file name"),
      (#"{"weights": {}}"#, "\(path): has no object 'weight_map'"),
      ("{", "\(path): not valid JSON: expected a member name in quotes, found the end at byte 1"),
    ] {
      let error = #expect(throws: PEFTError.self) { try open(text) }
      #expect(error?.description == message)
    }
  }

  @Test func folderWithoutWeightsIsAnError() throws {
    let error = #expect(throws: PEFTError.self) { try ModelWeights(folder: folder.path) }
    #expect(
      error?.description
        == "\(folder.path): has none of model.safetensors, model.safetensors.index.json, "
        + "pytorch_model.bin and pytorch_model.bin.index.json. "
        + "Check the path of the model.")
    _ = try folder.write("pytorch_model.bin", "")
    let pickled = #expect(throws: PEFTError.self) { try ModelWeights(folder: folder.path) }
    #expect(pickled?.message == "the file is empty")
    try SafetensorsWriter.write([SafetensorsItem("a", Tensor(1))], to: folder("model.safetensors"))
    #expect(try ModelWeights(folder: folder.path).names == ["a"])
  }
}

extension SafetensorsFile {
  /// Whether ``matrix(_:precision:)`` throws with a message.
  fileprivate func matrix(_ name: String, orThrow message: String) throws -> Bool {
    do { _ = try matrix(name) } catch { return error.message == message }
    return false
  }
}
