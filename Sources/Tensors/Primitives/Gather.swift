import BLASKernels

/// Rows of a trainable table: `[ids.count, columns]`.
///
/// - Precondition: Every id is in `0 ..< table.rows`.
public func gather(_ table: Tensor, rows ids: [Int32]) -> Tensor {
  let (tableRows, columns) = (table.rows, table.columns)
  let output = Tensor.filled([ids.count, columns]) {
    Rows.gather(table.slice, rows: tableRows, columns: columns, ids: ids, into: $0)
  }
  let tableShape = table.shape
  return output.recorded(from: [table]) { gradient, sink in
    sink.accumulate(into: 0, shape: tableShape) { destination, beta in
      if beta == 0 { destination.fill(0) }
      Rows.scatterAdd(
        gradient.slice, rows: tableRows, columns: columns, ids: ids, into: destination)
    }
  }
}

/// Rows of a frozen table: `[ids.count, columns]`.
public func gather(_ table: any WeightMatrix, rows ids: [Int32]) -> Tensor {
  Tensor.filled([ids.count, table.columns]) { table.gatherRows(ids, into: $0) }
}

/// Columns of a matrix as rows: `[rows, n]` and k ids to `[k, rows]`, an embedding whose table is
/// stored transposed.
public func selectColumns(_ matrix: Tensor, _ ids: [Int32]) -> Tensor {
  let (rows, columns) = (matrix.shape[0], matrix.columns)
  let output = Tensor.filled([ids.count, rows]) {
    Rows.gatherColumns(matrix.slice, rows: rows, columns: columns, ids: ids, into: $0)
  }
  return output.recorded(from: [matrix]) { gradient, sink in
    sink.accumulate(into: 0, shape: [rows, columns]) { destination, beta in
      if beta == 0 { destination.fill(0) }
      Rows.scatterAddColumns(
        gradient.slice, rows: rows, columns: columns, ids: ids, into: destination)
    }
  }
}
