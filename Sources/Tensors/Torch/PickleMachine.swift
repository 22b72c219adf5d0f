import PEFTSupport

/// Reads a pickle of tensors without executing anything.
///
/// A pickle is a program for a machine with a stack, which may call any function of Python. This
/// machine knows the operations that build data, and in place of functions the few of
/// ``PickleConstructor``, which it carries out itself; everything else is refused by name.
/// Operations: the comments of CPython's `pickletools.py`.
struct PickleMachine {
  private(set) var tuples: [[PickleValue]] = []
  private(set) var lists: [[PickleValue]] = []
  private(set) var dictionaries: [PickleDictionary] = []
  private(set) var storages: [TorchStorage] = []
  private(set) var tensors: [TorchTensor] = []
  /// Where reading ended; another pickle may follow.
  private(set) var position: Int

  private let bytes: [UInt8]
  private var stack: [PickleValue] = []
  private var marks: [Int] = []
  private var memo: [Int: PickleValue] = [:]
  /// Members of dictionaries and dimensions of tensors, those that are no longer used included.
  private var copiedCount = 0

  /// Prepares for a pickle that begins at a place.
  init(_ bytes: [UInt8], from position: Int = 0) {
    self.bytes = bytes
    self.position = position
  }

  /// The value of the pickle.
  ///
  /// - Throws: ``PEFTError`` `malformedFile` when it is cut or wrong, `unsupported` for operations
  ///   and constructors that a file of weights does not need.
  mutating func run() throws(PEFTError) -> PickleValue {
    while true {
      let place = position
      let code = try byte()
      if code == UInt8(ascii: ".") {
        let value = try pop()
        guard stack.isEmpty else { throw Self.malformed("values are left when it ends") }
        return value
      }
      if try pushConstant(code) { continue }
      if try pushText(code) { continue }
      if try build(code) { continue }
      if try memoize(code) { continue }
      throw PEFTError(
        .unsupported,
        "the operation 0x\(String(code, radix: 16)) at byte \(place) of the pickle is not one that "
          + "files of weights consist of", remedy: Self.advice)
    }
  }

  static func malformed(_ message: String) -> PEFTError {
    PEFTError(
      .malformedFile, "not a valid pickle: \(message)", remedy: "Obtain the file again.")
  }

  static let advice =
    "Only dictionaries of tensors are read, and nothing is executed. If you trust the file, "
    + "load it in Python and save its tensors as safetensors."

  // MARK: Operations

  /// Numbers and other constants.
  private mutating func pushConstant(_ code: UInt8) throws(PEFTError) -> Bool {
    switch code {
    case 0x80:
      let version = try byte()
      if version > 5 { throw Self.malformed("it has the unknown protocol \(version)") }
    case 0x95: _ = try length(8)
    case UInt8(ascii: "N"): stack.append(.none)
    case 0x88: stack.append(.bool(true))
    case 0x89: stack.append(.bool(false))
    case UInt8(ascii: "K"): stack.append(.int(Int(try byte())))
    case UInt8(ascii: "M"): stack.append(.int(Int(try number(2))))
    case UInt8(ascii: "J"):
      stack.append(.int(Int(Int32(truncatingIfNeeded: try number(4)))))
    case 0x8A: stack.append(.int(try long(Int(try byte()))))
    case 0x8B: stack.append(.int(try long(try length(4))))
    case UInt8(ascii: "G"):
      stack.append(.double(Double(bitPattern: try number(8).byteSwapped)))
    default: return false
    }
    return true
  }

  /// Strings and bytes.
  private mutating func pushText(_ code: UInt8) throws(PEFTError) -> Bool {
    switch code {
    case UInt8(ascii: "X"): stack.append(.string(try text(try length(4))))
    case 0x8C: stack.append(.string(try text(try length(1))))
    case 0x8D: stack.append(.string(try text(try length(8))))
    // Strings of Python 2.
    case UInt8(ascii: "U"): stack.append(.string(try text(try length(1))))
    case UInt8(ascii: "T"): stack.append(.string(try text(try length(4))))
    case UInt8(ascii: "C"): try skipBytes(1)
    case UInt8(ascii: "B"): try skipBytes(4)
    case 0x8E, 0x96: try skipBytes(8)
    default: return false
    }
    return true
  }

  /// Containers, constructors and their calls.
  private mutating func build(_ code: UInt8) throws(PEFTError) -> Bool {
    switch code {
    case UInt8(ascii: "("): marks.append(stack.count)
    case UInt8(ascii: "0"): _ = try pop()
    case UInt8(ascii: "1"): _ = try popToMark()
    case UInt8(ascii: "2"): stack.append(try top())
    case UInt8(ascii: ")"): push(tuple: [])
    case UInt8(ascii: "t"): push(tuple: try popToMark())
    case 0x85: push(tuple: try pop(1))
    case 0x86: push(tuple: try pop(2))
    case 0x87: push(tuple: try pop(3))
    case UInt8(ascii: "]"): push(list: [])
    case UInt8(ascii: "l"): push(list: try popToMark())
    case UInt8(ascii: "a"): try append(try pop(1))
    case UInt8(ascii: "e"): try append(try popToMark())
    case UInt8(ascii: "}"): pushDictionary()
    case UInt8(ascii: "d"):
      let members = try popToMark()
      pushDictionary()
      try setMembers(members)
    case UInt8(ascii: "s"): try setMembers(try pop(2))
    case UInt8(ascii: "u"): try setMembers(try popToMark())
    case UInt8(ascii: "c"): try pushConstructor(module: try line(), name: try line())
    case 0x93:
      guard case .string(let name) = try pop(), case .string(let module) = try pop() else {
        throw Self.malformed("a constructor's name is not a string")
      }
      try pushConstructor(module: module, name: name)
    case UInt8(ascii: "R"): try call()
    case UInt8(ascii: "b"): try setState()
    case UInt8(ascii: "Q"): try pushStorage(try pop())
    default: return false
    }
    return true
  }

  private mutating func memoize(_ code: UInt8) throws(PEFTError) -> Bool {
    switch code {
    case UInt8(ascii: "q"): memo[Int(try byte())] = try top()
    case UInt8(ascii: "r"): memo[Int(try number(4))] = try top()
    case 0x94: memo[memo.count] = try top()
    case UInt8(ascii: "h"): stack.append(try remembered(Int(try byte())))
    case UInt8(ascii: "j"): stack.append(try remembered(Int(try number(4))))
    default: return false
    }
    return true
  }

  private func remembered(_ place: Int) throws(PEFTError) -> PickleValue {
    guard let value = memo[place] else {
      throw Self.malformed("it refers to the value \(place), which it has not stored")
    }
    return value
  }

  // MARK: Containers

  private mutating func push(tuple elements: [PickleValue]) {
    stack.append(.tuple(tuples.count))
    tuples.append(elements)
  }

  private mutating func push(list elements: [PickleValue]) {
    stack.append(.list(lists.count))
    lists.append(elements)
  }

  private mutating func pushDictionary() {
    stack.append(.dictionary(dictionaries.count))
    dictionaries.append(PickleDictionary())
  }

  private mutating func append(_ elements: [PickleValue]) throws(PEFTError) {
    guard case .list(let place) = try top() else {
      throw Self.malformed("it appends to \(try top().kindName)")
    }
    lists[place].append(contentsOf: elements)
  }

  private mutating func setMembers(_ values: [PickleValue]) throws(PEFTError) {
    guard case .dictionary(let place) = try top() else {
      throw Self.malformed("it sets a member of \(try top().kindName)")
    }
    guard values.count % 2 == 0 else { throw Self.malformed("a key has no value") }
    try countCopies(values.count / 2)
    for i in stride(from: 0, to: values.count, by: 2) {
      switch values[i] {
      case .string(let text): dictionaries[place].set(.string(text), values[i + 1])
      case .int(let number): dictionaries[place].set(.int(number), values[i + 1])
      default:
        throw PEFTError(
          .unsupported, "a dictionary of the pickle has \(values[i].kindName) as a key",
          remedy: Self.advice)
      }
    }
  }

  /// Counts what a call copies out of a list. A list that is written once can be handed to any number
  /// of calls, so that a short pickle could fill the memory; each copy of an honest one is written.
  private mutating func countCopies(_ count: Int) throws(PEFTError) {
    copiedCount += count
    guard copiedCount <= bytes.count else {
      throw Self.malformed(
        "it sets more members of dictionaries and dimensions of tensors than it has bytes "
          + "(\(bytes.count))")
    }
  }

  // MARK: Constructors

  private mutating func pushConstructor(module: String, name: String) throws(PEFTError) {
    guard let constructor = PickleConstructor(module, name) else {
      throw PEFTError(
        .unsupported, "the pickle asks for '\(module).\(name)', which is refused",
        remedy: Self.advice)
    }
    stack.append(.constructor(constructor))
  }

  private mutating func call() throws(PEFTError) {
    guard case .tuple(let place) = try pop(), case .constructor(let constructor) = try pop() else {
      throw Self.malformed("it calls what is no constructor")
    }
    let arguments = tuples[place]
    switch constructor {
    case .orderedDictionary:
      pushDictionary()
      guard let first = arguments.first else { return }
      // The form of Python 2: a list of pairs.
      guard arguments.count == 1, case .list(let list) = first else {
        throw wrongArguments("OrderedDict")
      }
      for element in lists[list] {
        let pair: [PickleValue]
        switch element {
        case .tuple(let place): pair = tuples[place]
        case .list(let place): pair = lists[place]
        default: throw wrongArguments("OrderedDict")
        }
        guard pair.count == 2 else { throw wrongArguments("OrderedDict") }
        try setMembers(pair)
      }
    case .rebuildTensor: try rebuildTensor(arguments)
    case .rebuildParameter:
      guard case .tensor(let tensor)? = arguments.first else {
        throw wrongArguments("_rebuild_parameter")
      }
      stack.append(.tensor(tensor))
    case .storage: throw Self.malformed("it calls a storage type")
    }
  }

  /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, …)`.
  private mutating func rebuildTensor(_ arguments: [PickleValue]) throws(PEFTError) {
    guard arguments.count >= 4, case .storage(let storage) = arguments[0],
      case .int(let offset) = arguments[1], let shape = integers(arguments[2]),
      let strides = integers(arguments[3])
    else { throw wrongArguments("_rebuild_tensor_v2") }
    try countCopies(shape.count + strides.count)
    stack.append(.tensor(tensors.count))
    tensors.append(
      try TorchTensor(
        storage: storage, storages[storage], offset: offset, shape: shape, strides: strides))
  }

  /// The tuple `("storage", type, key, device, count)`, and in the old format a view after it.
  private mutating func pushStorage(_ identifier: PickleValue) throws(PEFTError) {
    guard case .tuple(let place) = identifier, tuples[place].count >= 5,
      case .string("storage") = tuples[place][0],
      case .constructor(.storage(let type)) = tuples[place][1],
      case .string(let key) = tuples[place][2], case .int(let count) = tuples[place][4],
      count >= 0, count <= Int.max / 8
    else { throw Self.malformed("a storage is not described as torch describes it") }
    if tuples[place].count > 5, case .tuple = tuples[place][5] {
      throw PEFTError(
        .unsupported, "the storage '\(key)' is a view of another one", remedy: Self.advice)
    }
    stack.append(.storage(storages.count))
    storages.append(TorchStorage(key: key, type: type, count: count))
  }

  /// Attributes of a dictionary, such as `_metadata` of a state_dict, are of no use here.
  private mutating func setState() throws(PEFTError) {
    _ = try pop()
    guard case .dictionary = try top() else {
      throw PEFTError(
        .unsupported, "the pickle sets the state of \(try top().kindName)", remedy: Self.advice)
    }
  }

  private func integers(_ value: PickleValue) -> [Int]? {
    let elements: [PickleValue]
    switch value {
    case .tuple(let place): elements = tuples[place]
    case .list(let place): elements = lists[place]
    default: return nil
    }
    var result: [Int] = []
    for element in elements {
      guard case .int(let number) = element else { return nil }
      result.append(number)
    }
    return result
  }

  private func wrongArguments(_ name: String) -> PEFTError {
    Self.malformed("the arguments of \(name) are not those that torch writes")
  }

  // MARK: Stack

  private func top() throws(PEFTError) -> PickleValue {
    guard let value = stack.last, stack.count > marks.last ?? 0 else {
      throw Self.malformed("a value is missing on its stack")
    }
    return value
  }

  private mutating func pop() throws(PEFTError) -> PickleValue {
    let value = try top()
    stack.removeLast()
    return value
  }

  private mutating func pop(_ count: Int) throws(PEFTError) -> [PickleValue] {
    guard stack.count - (marks.last ?? 0) >= count else {
      throw Self.malformed("a value is missing on its stack")
    }
    let values = Array(stack.suffix(count))
    stack.removeLast(count)
    return values
  }

  private mutating func popToMark() throws(PEFTError) -> [PickleValue] {
    guard let mark = marks.popLast() else { throw Self.malformed("a mark is missing") }
    let values = Array(stack[mark...])
    stack.removeLast(stack.count - mark)
    return values
  }

  // MARK: Bytes

  private mutating func byte() throws(PEFTError) -> UInt8 {
    guard position < bytes.count else { throw Self.malformed("it is cut") }
    defer { position += 1 }
    return bytes[position]
  }

  /// A little-endian number.
  private mutating func number(_ size: Int) throws(PEFTError) -> UInt64 {
    let range = try take(size)
    return bytes[range].reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// A length of what follows, which must be there.
  private mutating func length(_ size: Int) throws(PEFTError) -> Int {
    let value = try number(size)
    guard value <= UInt64(bytes.count - position) else { throw Self.malformed("it is cut") }
    return Int(value)
  }

  private mutating func take(_ count: Int) throws(PEFTError) -> Range<Int> {
    guard count <= bytes.count - position else { throw Self.malformed("it is cut") }
    defer { position += count }
    return position..<position + count
  }

  private mutating func text(_ count: Int) throws(PEFTError) -> String {
    guard let text = String(validating: bytes[try take(count)], as: UTF8.self) else {
      throw Self.malformed("a string is not UTF-8")
    }
    return text
  }

  private mutating func skipBytes(_ size: Int) throws(PEFTError) {
    _ = try take(try length(size))
    stack.append(.bytes)
  }

  private mutating func long(_ count: Int) throws(PEFTError) -> Int {
    let range = try take(count)
    guard count <= 8 else { throw Self.malformed("an integer has \(count) bytes") }
    let negative = range.isEmpty ? false : bytes[range.upperBound - 1] >= 0x80
    let magnitude = bytes[range].reversed().reduce(negative ? -1 : 0) { $0 << 8 | Int($1) }
    return magnitude
  }

  /// Text up to the end of a line.
  private mutating func line() throws(PEFTError) -> String {
    guard let end = bytes[position...].firstIndex(of: 0x0A) else {
      throw Self.malformed("it is cut")
    }
    let text = try text(end - position)
    position += 1
    return text
  }
}
