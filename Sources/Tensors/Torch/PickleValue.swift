import PEFTSupport

/// What a pickle of weights may consist of.
///
/// Containers are places in the machine's lists, not references: however they are nested or refer
/// to one another, nothing is followed unless someone asks, and nothing leaks.
enum PickleValue {
  case none
  case bool(Bool)
  case int(Int)
  case double(Double)
  case string(String)
  case bytes
  case tuple(Int)
  case list(Int)
  case dictionary(Int)
  case constructor(PickleConstructor)
  case storage(Int)
  case tensor(Int)

  /// A name for messages.
  var kindName: String {
    switch self {
    case .none: return "None"
    case .bool: return "a Boolean"
    case .int: return "an integer"
    case .double: return "a number"
    case .string: return "a string"
    case .bytes: return "bytes"
    case .tuple: return "a tuple"
    case .list: return "a list"
    case .dictionary: return "a dictionary"
    case .constructor: return "a constructor"
    case .storage: return "a storage"
    case .tensor: return "a tensor"
    }
  }
}

/// All that a pickle may name. Whatever is not here is refused when it is named, before anything
/// could be called; those here are carried out by ``PickleMachine`` itself.
enum PickleConstructor: Equatable {
  case orderedDictionary
  case rebuildTensor
  case rebuildParameter
  case storage(ElementType)

  /// The constructor of a module and a name.
  init?(_ module: String, _ name: String) {
    switch (module, name) {
    case ("collections", "OrderedDict"): self = .orderedDictionary
    case ("torch._utils", "_rebuild_tensor_v2"): self = .rebuildTensor
    case ("torch._utils", "_rebuild_parameter"): self = .rebuildParameter
    case ("torch", _):
      guard let type = Self.storageTypes[name] else { return nil }
      self = .storage(type)
    default: return nil
    }
  }

  private static let storageTypes: [String: ElementType] = [
    "DoubleStorage": .float64, "FloatStorage": .float32, "HalfStorage": .float16,
    "BFloat16Storage": .bfloat16, "LongStorage": .int64, "IntStorage": .int32,
    "ShortStorage": .int16, "CharStorage": .int8, "ByteStorage": .uint8, "BoolStorage": .bool,
  ]
}

/// A dictionary in the order of its keys.
struct PickleDictionary {
  /// A key; other kinds are refused.
  enum Key: Hashable {
    case string(String)
    case int(Int)

    /// The part that it gives a tensor's name.
    var text: String {
      switch self {
      case .string(let text): return text
      case .int(let number): return String(number)
      }
    }
  }

  private(set) var members: [(key: Key, value: PickleValue)] = []
  private var index: [Key: Int] = [:]

  /// Sets a member; one that is there keeps its place, as in Python.
  mutating func set(_ key: Key, _ value: PickleValue) {
    if let place = index[key] {
      members[place].value = value
    } else {
      index[key] = members.count
      members.append((key, value))
    }
  }
}

/// A run of numbers that tensors are views of.
struct TorchStorage: Sendable {
  /// Its name in the file.
  let key: String
  /// The type of its numbers.
  let type: ElementType
  /// How many there are.
  let count: Int
}

/// A view of a storage.
struct TorchTensor: Sendable {
  /// The storage's place in the machine's list.
  let storage: Int
  /// The first element.
  let offset: Int
  /// The extent of each dimension.
  let shape: [Int]
  /// The distance of neighbours in each dimension, in elements; 0 for a single element.
  let strides: [Int]

  /// Checks a view against its storage.
  ///
  /// - Throws: ``PEFTError`` `malformedFile` for negative numbers, sizes beyond 64 bits, and when an
  ///   element lies beyond the storage; `unsupported` for views that repeat few numbers enormously often.
  init(
    storage place: Int, _ storage: TorchStorage, offset: Int, shape: [Int], strides: [Int]
  ) throws(PEFTError) {
    self.storage = place
    self.offset = offset
    self.shape = shape
    // The stride of a dimension of one element is never taken, and may be any number.
    self.strides = zip(shape, strides).map { $0 == 1 ? 0 : $1 }
    func wrong() -> PEFTError {
      PickleMachine.malformed(
        "a tensor of shape \(shape) with strides \(strides) from \(offset) on lies beyond its "
          + "storage '\(storage.key)' of \(storage.count) elements")
    }
    guard shape.count == strides.count, offset >= 0, shape.allSatisfy({ $0 >= 0 }),
      strides.allSatisfy({ $0 >= 0 })
    else { throw wrong() }
    var last = offset
    // An empty tensor's other dimensions are multiplied too, in views of it.
    var byteCount = storage.type.byteCount
    for (extent, stride) in zip(shape, self.strides) {
      let (reach, a) = max(extent - 1, 0).multipliedReportingOverflow(by: stride)
      let (sum, b) = last.addingReportingOverflow(reach)
      guard !a, !b else { throw wrong() }
      let (product, c) = byteCount.multipliedReportingOverflow(by: max(extent, 1))
      guard !c else { throw PickleMachine.malformed("a tensor's shape \(shape) is too large") }
      last = sum
      byteCount = product
    }
    let count = shape.contains(0) ? 0 : byteCount / storage.type.byteCount
    guard count == 0 ? offset <= storage.count : last < storage.count else { throw wrong() }
    guard count <= max(storage.count, 1 << 24) else {
      throw PEFTError(
        .unsupported,
        "a tensor of shape \(shape) repeats the \(storage.count) elements of its storage")
    }
  }

  /// Whether its elements lie one after the other.
  var isContiguous: Bool {
    var expected = 1
    for (extent, stride) in zip(shape, strides).reversed() where extent != 1 {
      if stride != expected { return shape.contains(0) }
      expected *= extent
    }
    return true
  }

  /// The elements in row-major order, gathered from the storage's bytes.
  func gathered(_ bytes: [UInt8], elementSize: Int) -> [UInt8] {
    let count = shape.reduce(1, *)
    var result: [UInt8] = []
    result.reserveCapacity(count * elementSize)
    var position = [Int](repeating: 0, count: shape.count)
    var element = offset
    for _ in 0..<count {
      result.append(contentsOf: bytes[element * elementSize..<(element + 1) * elementSize])
      // To the next position, from the last dimension on.
      var dimension = shape.count - 1
      while dimension >= 0 {
        position[dimension] += 1
        element += strides[dimension]
        if position[dimension] < shape[dimension] { break }
        element -= strides[dimension] * shape[dimension]
        position[dimension] = 0
        dimension -= 1
      }
    }
    return result
  }
}
