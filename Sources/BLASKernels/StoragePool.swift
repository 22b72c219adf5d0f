import CKernels
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Free blocks by size class.
///
/// Classes are powers of two in four steps each, so a block wastes at most a fifth. Blocks of 2 MiB and more
/// ask for huge pages.
final class StoragePool: Sendable {
  static let shared = StoragePool()

  struct Block {
    let address: UnsafeMutableRawPointer
    let blockClass: Int
  }

  // Addresses, as integers, so that the state may move between threads.
  private struct State: Sendable {
    var free: [[UInt]] = Array(repeating: [], count: 256)
    var statistics = StorageStatistics()
  }

  private let state = Mutex(State())

  /// The class for a size: the smallest whose blocks hold it.
  static func blockClass(_ byteCount: Int) -> Int {
    let size = max(byteCount, 64) - 1
    let exponent = Int.bitWidth - 1 - size.leadingZeroBitCount
    let quarter = (size >> (exponent - 2)) & 3
    return exponent * 4 + quarter + 1
  }

  /// The bytes in a block of a class.
  static func size(ofClass blockClass: Int) -> Int {
    let exponent = blockClass / 4
    return (1 << exponent) + (blockClass % 4) * (1 << (exponent - 2))
  }

  func take(_ byteCount: Int) -> Block {
    let blockClass = Self.blockClass(byteCount)
    let size = Self.size(ofClass: blockClass)
    let pooled: UInt? = state.withLock { state in
      state.statistics.allocationCount += 1
      state.statistics.liveBytes += size
      state.statistics.peakLiveBytes = max(
        state.statistics.peakLiveBytes, state.statistics.liveBytes)
      guard let address = state.free[blockClass].popLast() else {
        state.statistics.missCount += 1
        return nil
      }
      state.statistics.pooledBytes -= size
      return address
    }
    if let pooled {
      return Block(address: UnsafeMutableRawPointer(bitPattern: pooled)!, blockClass: blockClass)
    }
    let isLarge = size >= 1 << 21
    var address: UnsafeMutableRawPointer?
    let failure = posix_memalign(&address, isLarge ? 1 << 21 : 64, size)
    guard failure == 0, let address else {
      preconditionFailure("out of memory: \(size) bytes could not be allocated")
    }
    if isLarge { pk_advise_huge(address, size) }
    return Block(address: address, blockClass: blockClass)
  }

  func give(_ address: UnsafeMutableRawPointer, class blockClass: Int) {
    let size = Self.size(ofClass: blockClass)
    let bits = UInt(bitPattern: address)
    state.withLock { state in
      state.statistics.liveBytes -= size
      state.statistics.pooledBytes += size
      state.free[blockClass].append(bits)
    }
  }

  func trim() {
    let blocks: [[UInt]] = state.withLock { state in
      let blocks = state.free
      for index in state.free.indices { state.free[index] = [] }
      state.statistics.pooledBytes = 0
      return blocks
    }
    for address in blocks.joined() { free(UnsafeMutableRawPointer(bitPattern: address)) }
  }

  var statistics: StorageStatistics { state.withLock { $0.statistics } }
}
