import CKernels

/// The process's one thread pool, shared with oneDNN and OpenBLAS.
///
/// Work is cut into chunks by the thread count alone, so a result is the same to the bit in every run with
/// the same ``threadCount``.
public enum Parallel {
  /// How many threads kernels use: `OMP_NUM_THREADS`, else the processors that the process may run on.
  ///
  /// Setting it also sets it for oneDNN and OpenBLAS. Not to be set while kernels run.
  public static var threadCount: Int {
    get { Int(pk_threads()) }
    set { pk_set_threads(Int32(clamping: newValue)) }
  }

  /// Runs `body` for every index in `0..<count`, each exactly once, on the pool.
  ///
  /// A thread that is done with one takes the next. Inside another parallel region the calling thread runs them all. `body`
  /// must not throw and should not allocate much; it may run on other threads, so it must only write what
  /// belongs to its index.
  public static func forEach(_ count: Int, _ body: (Int) -> Void) {
    guard count > 0 else { return }
    let threads = pk_threads()
    guard count > 1, threads > 1 else {
      for index in 0..<count { body(index) }
      return
    }
    withoutActuallyEscaping(body) { escapable in
      var context = escapable
      withUnsafeMutablePointer(to: &context) { pointer in
        pk_parallel(
          threads, count,
          { context, chunk in
            context!.assumingMemoryBound(to: ((Int) -> Void).self).pointee(chunk)
          }, pointer)
      }
    }
  }

  /// How many parts a large piece of work is cut into: more than threads, so that a core that is slower for a
  /// while, as shared ones are, holds nothing up.
  static var mostParts: Int { threadCount > 1 ? 4 * threadCount : 1 }

  /// Cuts `0..<count` into ranges, some for each thread, and runs `body` for each of them.
  ///
  /// - Parameters:
  ///   - count: The number of items.
  ///   - grain: The smallest number of items worth a range of their own.
  ///   - multiple: Ranges start at multiples of this.
  ///   - body: The work on one range.
  public static func split(
    _ count: Int, grain: Int, multiple: Int = 1, _ body: (Range<Int>) -> Void
  ) {
    guard count > 0 else { return }
    let parts = min(mostParts, max(1, count / max(grain, 1)))
    guard parts > 1 else { return body(0..<count) }
    let units = (count + multiple - 1) / multiple
    forEach(parts) { part in
      let lower = units * part / parts * multiple
      let upper = min(units * (part + 1) / parts * multiple, count)
      if lower < upper { body(lower..<upper) }
    }
  }

  // The amounts of work below which a second thread costs more than it gives, measured: elements for
  // kernels bound by memory, and for those with an exponential in them.
  static let lightGrain = 1 << 14
  static let heavyGrain = 1 << 12
}
