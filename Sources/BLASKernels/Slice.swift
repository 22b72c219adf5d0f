/// A read-only run of elements in a ``Storage``.
///
/// A value: it keeps its storage alive and does not own it alone. Bounds are checked by precondition.
public struct Slice<Element: BitwiseCopyable & Sendable>: Sendable {
  /// The memory.
  public let storage: Storage
  /// Where the run starts, in elements from the storage's first byte.
  public let offset: Int
  /// The number of elements.
  public let count: Int

  /// A run of elements; `count` is the rest of the storage unless given.
  public init(_ storage: Storage, offset: Int = 0, count: Int? = nil) {
    let capacity = storage.byteCount / MemoryLayout<Element>.stride
    self.storage = storage
    self.offset = offset
    self.count = count ?? capacity - offset
    precondition(
      offset >= 0 && self.count >= 0 && offset + self.count <= capacity, "slice out of bounds")
  }

  /// A fresh storage with a copy of `elements`.
  public init(_ elements: [Element]) {
    self = MutableSlice(elements).readOnly
  }

  /// A part of this slice.
  public subscript(range: Range<Int>) -> Slice {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "slice out of bounds")
    return Slice(storage, offset: offset + range.lowerBound, count: range.count)
  }

  /// The part from an index to the end.
  public subscript(range: PartialRangeFrom<Int>) -> Slice { self[range.lowerBound..<count] }

  /// One element.
  public subscript(index: Int) -> Element {
    precondition(index >= 0 && index < count, "index out of bounds")
    return UnsafeRawPointer(pointer + index).loadUnaligned(as: Element.self)
  }

  /// A copy of the elements.
  public var array: [Element] {
    [Element](unsafeUninitializedCapacity: count) { buffer, initialized in
      // By bytes, since a window of a file may start anywhere.
      if let to = buffer.baseAddress {
        let size = count * MemoryLayout<Element>.stride
        UnsafeMutableRawPointer(to).copyMemory(from: pointer, byteCount: size)
      }
      initialized = count
    }
  }

  /// The elements in place.
  public func withSpan<Result: ~Copyable, Failure: Error>(
    _ body: (Span<Element>) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try body(UnsafeBufferPointer(start: pointer, count: count).span)
  }

  var pointer: UnsafePointer<Element> {
    UnsafePointer(storage.base.assumingMemoryBound(to: Element.self) + offset)
  }
}

/// A run of elements in a ``Storage`` that may be written.
///
/// A value like ``Slice``: copies of it write the same memory. Kernels take it as their destination.
public struct MutableSlice<Element: BitwiseCopyable & Sendable>: Sendable {
  /// The memory, which is not a file's.
  public let storage: Storage
  /// Where the run starts, in elements from the storage's first byte.
  public let offset: Int
  /// The number of elements.
  public let count: Int

  /// A run of elements; `count` is the rest of the storage unless given.
  public init(_ storage: Storage, offset: Int = 0, count: Int? = nil) {
    precondition(!storage.isReadOnly, "the storage is read-only")
    let readOnly = Slice<Element>(storage, offset: offset, count: count)
    self.storage = storage
    self.offset = offset
    self.count = readOnly.count
  }

  /// A fresh storage with undefined content.
  public init(count: Int) {
    self.init(
      Storage.allocate(byteCount: count * MemoryLayout<Element>.stride), offset: 0, count: count)
  }

  /// A fresh storage with a copy of `elements`.
  public init(_ elements: [Element]) {
    self.init(count: elements.count)
    copy(from: elements)
  }

  /// A fresh storage filled with one value.
  public init(repeating value: Element, count: Int) {
    self.init(count: count)
    fill(value)
  }

  /// The same run for reading.
  public var readOnly: Slice<Element> { Slice(storage, offset: offset, count: count) }

  /// A part of this slice.
  public subscript(range: Range<Int>) -> MutableSlice {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "slice out of bounds")
    return MutableSlice(storage, offset: offset + range.lowerBound, count: range.count)
  }

  /// The part from an index to the end.
  public subscript(range: PartialRangeFrom<Int>) -> MutableSlice { self[range.lowerBound..<count] }

  /// One element.
  public subscript(index: Int) -> Element {
    get { readOnly[index] }
    nonmutating set {
      precondition(index >= 0 && index < count, "index out of bounds")
      pointer[index] = newValue
    }
  }

  /// A copy of the elements.
  public var array: [Element] { readOnly.array }

  /// The elements in place, for reading.
  public func withSpan<Result: ~Copyable, Failure: Error>(
    _ body: (Span<Element>) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try readOnly.withSpan(body)
  }

  /// The elements in place, for writing.
  public func withMutableSpan<Result: ~Copyable, Failure: Error>(
    _ body: (inout MutableSpan<Element>) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    var span = UnsafeMutableBufferPointer(start: pointer, count: count).mutableSpan
    return try body(&span)
  }

  /// Copies as many elements as there are from an array.
  public func copy(from elements: [Element]) {
    precondition(elements.count == count, "\(elements.count) elements for a slice of \(count)")
    elements.withUnsafeBufferPointer { source in
      if let address = source.baseAddress { pointer.update(from: address, count: count) }
    }
  }

  /// Copies another slice; the two may overlap.
  public func copy(from source: Slice<Element>) {
    precondition(source.count == count, "\(source.count) elements for a slice of \(count)")
    let size = MemoryLayout<Element>.stride
    let grain = Parallel.lightGrain * 4 / size
    guard source.storage !== storage else {
      pointer.update(from: source.pointer, count: count)
      return
    }
    Parallel.split(count, grain: grain) { range in
      (pointer + range.lowerBound).update(
        from: source.pointer + range.lowerBound, count: range.count)
    }
  }

  /// Sets every element.
  public func fill(_ value: Element) {
    Parallel.split(count, grain: Parallel.lightGrain) { range in
      (pointer + range.lowerBound).update(repeating: value, count: range.count)
    }
  }

  var pointer: UnsafeMutablePointer<Element> {
    storage.base.assumingMemoryBound(to: Element.self) + offset
  }
}
