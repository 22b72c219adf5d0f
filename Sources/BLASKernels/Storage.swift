import CKernels

/// A block of memory: owned, 64-byte aligned and recycled, or a read-only window of a mapped file.
///
/// A storage is shared by reference; whoever holds a reference keeps the memory alive, and the last one
/// returns an owned block to the pool or lets go of the mapping. It does not synchronise access: who writes
/// must be the only one using that part, which copy-on-write values above this layer see to.
public final class Storage: @unchecked Sendable {
  /// The size that was asked for.
  public let byteCount: Int
  /// Whether the memory belongs to a file.
  public let isReadOnly: Bool

  let base: UnsafeMutableRawPointer
  private let mapping: MappedFile?
  private let blockClass: Int

  private init(
    base: UnsafeMutableRawPointer, byteCount: Int, mapping: MappedFile?, blockClass: Int
  ) {
    self.base = base
    self.byteCount = byteCount
    self.mapping = mapping
    self.blockClass = blockClass
    isReadOnly = mapping != nil
  }

  deinit {
    if mapping == nil { StoragePool.shared.give(base, class: blockClass) }
  }

  /// A block with undefined content, from the recycling pool.
  public static func allocate(byteCount: Int) -> Storage {
    precondition(byteCount >= 0, "negative size")
    let block = StoragePool.shared.take(byteCount)
    return Storage(
      base: block.address, byteCount: byteCount, mapping: nil, blockClass: block.blockClass)
  }

  /// A window of a mapped file, in bytes.
  ///
  /// Memory is shared with the file, unless the window does not start at a multiple of `alignment`: then
  /// its bytes are copied into an owned block.
  public static func window(
    _ range: Range<Int>, of file: MappedFile, alignment: Int = 1
  ) -> Storage {
    precondition(
      range.lowerBound >= 0 && range.upperBound <= file.byteCount, "window beyond the file")
    let address = file.base + range.lowerBound
    if Int(bitPattern: address) % max(alignment, 1) != 0 {
      let copy = allocate(byteCount: range.count)
      copy.base.copyMemory(from: address, byteCount: range.count)
      return copy
    }
    return Storage(base: address, byteCount: range.count, mapping: file, blockClass: -1)
  }

  /// Returns every unused block to the system.
  public static func trimPool() { StoragePool.shared.trim() }

  /// What the pool holds now, and has held.
  public static var statistics: StorageStatistics { StoragePool.shared.statistics }
}

/// What the recycling pool holds.
public struct StorageStatistics: Sendable, Equatable {
  /// Bytes in blocks that are in use.
  public var liveBytes = 0
  /// Bytes in blocks that wait for reuse.
  public var pooledBytes = 0
  /// The most bytes that were in use at once.
  public var peakLiveBytes = 0
  /// Allocations that had to ask the system for memory.
  public var missCount = 0
  /// All allocations.
  public var allocationCount = 0
}

/// Runs `body` with `count` floats from the pool, which stay alive for as long as it runs.
func withScratch<Result>(
  _ count: Int, _ body: (UnsafeMutablePointer<Float>) -> Result
) -> Result {
  let slice = MutableSlice<Float>(count: count)
  return withExtendedLifetime(slice) { body(slice.pointer) }
}
