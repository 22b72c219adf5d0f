import CKernels
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Free blocks by size class.
///
/// Classes are powers of two in four steps each, so a block of its class wastes at most a fifth; a free one of up
/// to twice the size is taken before memory is asked for, so that batches of ever new sizes share their blocks. What
/// is still too much goes back to the system. Blocks of 2 MiB and more ask for huge pages.
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

  /// What a request gets: a free block, or leave to allocate one after some others were freed.
  private enum Answer {
    case pooled(UInt, blockClass: Int)
    case missing(surplus: [UInt])
  }

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
    let answer: Answer = state.withLock { state in
      state.statistics.allocationCount += 1
      let near = blockClass...min(blockClass + 4, state.free.count - 1)
      let found = near.first { !state.free[$0].isEmpty }
      let size = Self.size(ofClass: found ?? blockClass)
      state.statistics.liveBytes += size
      state.statistics.peakLiveBytes = max(
        state.statistics.peakLiveBytes, state.statistics.liveBytes)
      if let found {
        state.statistics.pooledBytes -= size
        return .pooled(state.free[found].removeLast(), blockClass: found)
      }
      state.statistics.missCount += 1
      return .missing(surplus: Self.surplus(&state))
    }
    switch answer {
    case .pooled(let address, let blockClass):
      return Block(address: UnsafeMutableRawPointer(bitPattern: address)!, blockClass: blockClass)
    case .missing(let surplus):
      for address in surplus { free(UnsafeMutableRawPointer(bitPattern: address)) }
    }
    let size = Self.size(ofClass: blockClass)
    guard let address = Self.allocate(size) ?? retry(size) else {
      preconditionFailure("out of memory: \(size) bytes could not be allocated")
    }
    return Block(address: address, blockClass: blockClass)
  }

  /// Takes free blocks off the lists, the largest first, until all blocks together are no more than twice what was
  /// ever in use at once.
  private static func surplus(_ state: inout State) -> [UInt] {
    var result: [UInt] = []
    let limit = 2 * state.statistics.peakLiveBytes
    for place in state.free.indices.reversed() where !state.free[place].isEmpty {
      while state.statistics.liveBytes + state.statistics.pooledBytes > limit,
        let address = state.free[place].popLast()
      {
        state.statistics.pooledBytes -= size(ofClass: place)
        result.append(address)
      }
    }
    return result
  }

  private static func allocate(_ size: Int) -> UnsafeMutableRawPointer? {
    let isLarge = size >= 1 << 21
    var address: UnsafeMutableRawPointer?
    guard posix_memalign(&address, isLarge ? 1 << 21 : 64, size) == 0, let address else {
      return nil
    }
    if isLarge { pk_advise_huge(address, size) }
    return address
  }

  private func retry(_ size: Int) -> UnsafeMutableRawPointer? {
    trim()
    return Self.allocate(size)
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
