import PEFTSupport
import Testing

@testable import BLASKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

extension Kernels {
  @Suite struct StorageTests {
    @Test func sizeClassesHoldTheirSizes() {
      var last = 0
      for size in Array(0...5000) + [65_537, 1_000_000, 1 << 30, (1 << 30) + 1] {
        let blockClass = StoragePool.blockClass(size)
        let bytes = StoragePool.size(ofClass: blockClass)
        #expect(bytes >= size && bytes <= max(64, size + size / 4 + 64) && blockClass >= last)
        #expect(size <= 64 || StoragePool.size(ofClass: blockClass - 1) < size)
        last = blockClass
      }
    }

    @Test func blocksAreAlignedAndRecycled() {
      Storage.trimPool()
      var address = 0
      do {
        let storage = Storage.allocate(byteCount: 777_777)
        address = Int(bitPattern: storage.base)
        #expect(address % 64 == 0 && storage.byteCount == 777_777 && !storage.isReadOnly)
      }
      let before = Storage.statistics
      let again = Storage.allocate(byteCount: 770_000)
      #expect(Int(bitPattern: again.base) == address)
      #expect(Storage.statistics.missCount == before.missCount)
      #expect(Storage.statistics.pooledBytes < before.pooledBytes)
      for size in [0, 1, 100, 10_000, 3 << 20] {
        #expect(Int(bitPattern: Storage.allocate(byteCount: size).base) % 64 == 0)
      }
    }

    /// A run whose batches grow and shrink: sets of blocks of ever other sizes.
    @Test func sizesThatChangeShareBlocks() {
      let pool = StoragePool()
      var sizes: [Int] = []
      var size = 50_000.0
      while size < 3_000_000 {
        sizes.append(Int(size))
        size *= 1.07
      }
      for size in sizes + sizes.reversed() + sizes {
        let blocks = (0..<5).map { _ in pool.take(size) }
        for block in blocks { pool.give(block.address, class: block.blockClass) }
        let statistics = pool.statistics
        #expect(statistics.liveBytes == 0)
        #expect(statistics.pooledBytes <= 2 * statistics.peakLiveBytes)
      }
      // The second and third time through, nothing near the largest size is asked for again.
      let before = pool.statistics.missCount
      for size in sizes.suffix(8).shuffled() {
        let blocks = (0..<5).map { _ in pool.take(size) }
        for block in blocks { pool.give(block.address, class: block.blockClass) }
      }
      #expect(pool.statistics.missCount == before)
      pool.trim()
    }

    @Test func trimmingEmptiesThePool() {
      _ = Storage.allocate(byteCount: 12_345)
      #expect(Storage.statistics.pooledBytes > 0)
      Storage.trimPool()
      #expect(Storage.statistics.pooledBytes == 0)
    }

    @Test func allocationFromManyThreads() {
      withThreads(4) {
        Parallel.forEach(400) { index in
          let slice = MutableSlice<Int>(repeating: index, count: 100 + index * 7)
          #expect(slice.array.allSatisfy { $0 == index })
        }
      }
    }

    static func withFile(_ bytes: [UInt8], _ body: (String) throws -> Void) throws {
      let path = "/tmp/peft-kernels-test-\(getpid())-\(bytes.count)"
      let file = fopen(path, "w")!
      fwrite(bytes, 1, bytes.count, file)
      fclose(file)
      defer { unlink(path) }
      try body(path)
    }

    @Test func mappedFiles() throws {
      try Self.withFile((0..<100).map { UInt8($0) }) { path in
        var file: MappedFile? = try MappedFile(path: path)
        #expect(file!.byteCount == 100 && file!.bytes(3..<6) == [3, 4, 5])
        let window = Storage.window(8..<20, of: file!)
        let odd = Storage.window(9..<21, of: file!)
        let copied = Storage.window(9..<21, of: file!, alignment: 4)
        file = nil
        #expect(window.isReadOnly && odd.isReadOnly && !copied.isReadOnly)
        #expect(Slice<UInt8>(window).array == Array(8..<20))
        let expected = [UInt32(0x0C0B_0A09), 0x100F_0E0D, 0x1413_1211]
        #expect(Slice<UInt32>(odd).array == expected)
        #expect(Slice<UInt32>(odd)[1] == 0x100F_0E0D)
        #expect(Slice<UInt32>(copied).array == expected)
      }
    }

    @Test func mappingErrorsNameTheFile() throws {
      for (path, code) in [
        ("/nonexistent/file", PEFTError.Code.fileNotFound), ("/tmp", .fileAccess),
      ] {
        #expect {
          _ = try MappedFile(path: path)
        } throws: { error in
          let error = error as? PEFTError
          return error?.code == code && error?.location == path
        }
      }
      try Self.withFile([]) { path in
        let empty = try MappedFile(path: path)
        #expect(empty.byteCount == 0)
      }
    }

    @Test func slices() {
      let slice = MutableSlice<Float>([1, 2, 3, 4, 5, 6])
      let part = slice[2..<5]
      #expect(part.array == [3, 4, 5] && part[1] == 4 && slice[4...].array == [5, 6])
      part[0] = 9
      #expect(slice.array == [1, 2, 9, 4, 5, 6])
      part.withMutableSpan { $0[2] = 7 }
      #expect(slice.readOnly.withSpan { $0[4] } == 7)
      // Overlapping copies move as if through a buffer.
      slice[0..<4].copy(from: slice.readOnly[1..<5])
      #expect(slice.array == [2, 9, 4, 7, 7, 6])
    }
  }

  @Suite struct ParallelTests {
    @Test(arguments: [1, 2, 5]) func everyIndexOnce(threads: Int) {
      withThreads(threads) {
        let counts = MutableSlice<Int32>(repeating: 0, count: 1000)
        Parallel.forEach(1000) { counts[$0] += 1 }
        #expect(counts.array.allSatisfy { $0 == 1 })
        counts.fill(0)
        Parallel.split(1000, grain: 1, multiple: 16) { range in
          #expect(range.lowerBound % 16 == 0)
          for i in range { counts[i] += 1 }
        }
        #expect(counts.array.allSatisfy { $0 == 1 })
        counts.fill(0)
        // Nested regions run on the thread that meets them.
        Parallel.forEach(10) { outer in
          Parallel.forEach(100) { inner in counts[outer * 100 + inner] += 1 }
        }
        #expect(counts.array.allSatisfy { $0 == 1 })
      }
    }
  }
}
