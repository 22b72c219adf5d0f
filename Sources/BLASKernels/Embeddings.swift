import CKernels
import PEFTSupport

/// Rows of tables, by index.
public enum Embeddings {
  /// y[i] = table[ids[i]].
  ///
  /// - Parameters:
  ///   - ids: Row numbers.
  ///   - table: `[rows, width]`.
  ///   - width: A row's length.
  ///   - y: `[ids.count, width]`; must not overlap the table.
  /// - Throws: `PEFTError.invalidData` for an id that is no row.
  public static func gather(
    _ ids: Slice<Int32>, from table: Slice<Float>, width: Int, into y: MutableSlice<Float>
  ) throws(PEFTError) {
    try checkIDs(ids, table.count, width, y.count)
    Rows.split(ids.count, width) { r in
      for i in r {
        (y.pointer + i * width).update(
          from: table.pointer + Int(ids.pointer[i]) * width, count: width)
      }
    }
  }

  /// y[i] = table[ids[i]] of a bf16 or f16 table, widened.
  ///
  /// - Throws: `PEFTError.invalidData` for an id that is no row.
  public static func gather(
    _ ids: Slice<Int32>, from table: Slice<UInt16>, format: HalfFormat, width: Int,
    into y: MutableSlice<Float>
  ) throws(PEFTError) {
    try checkIDs(ids, table.count, width, y.count)
    Rows.split(ids.count, width) { r in
      for i in r {
        let from = table.pointer + Int(ids.pointer[i]) * width
        Conversion.widen(from, format, y.pointer + i * width, width)
      }
    }
  }

  /// table[ids[i]] += dy[i], in the order of i, the same for every thread count.
  ///
  /// - Parameters:
  ///   - ids: Row numbers, checked by the forward.
  ///   - dy: `[ids.count, width]`.
  ///   - width: A row's length.
  ///   - table: The table's gradient `[rows, width]`, added to.
  public static func scatterAdd(
    _ ids: Slice<Int32>, _ dy: Slice<Float>, width: Int, into table: MutableSlice<Float>
  ) {
    precondition(dy.count == ids.count * width, "a matrix has another size")
    let rows = width > 0 ? table.count / width : 0
    for i in 0..<ids.count {
      precondition(ids.pointer[i] >= 0 && Int(ids.pointer[i]) < rows, "id out of range")
    }
    // Threads own columns, so that no two add to the same element.
    let grain = max(16, Parallel.lightGrain / max(ids.count, 1))
    Parallel.split(width, grain: grain, multiple: 16) { c in
      for i in 0..<ids.count {
        pk_axpy(
          1, dy.pointer + i * width + c.lowerBound,
          table.pointer + Int(ids.pointer[i]) * width + c.lowerBound, c.count)
      }
    }
  }

  private static func checkIDs(
    _ ids: Slice<Int32>, _ tableCount: Int, _ width: Int, _ outputCount: Int
  ) throws(PEFTError) {
    precondition(outputCount == ids.count * width, "a matrix has another size")
    let rows = width > 0 ? tableCount / width : 0
    for i in 0..<ids.count where ids.pointer[i] < 0 || Int(ids.pointer[i]) >= rows {
      throw PEFTError(
        .invalidData, "the id \(ids.pointer[i]) at position \(i) is not in 0..<\(rows)")
    }
  }
}
