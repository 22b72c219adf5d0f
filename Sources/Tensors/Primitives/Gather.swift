import BLASKernels

/// Rows of a trainable table: `[ids.count, columns]`.
///
/// - Parameters:
///   - table: `[rows, columns]`.
///   - ids: Rows of it.
///   - constant: A row that gets no gradient, as that of a padding token.
/// - Precondition: Every id is in `0 ..< table.rows`.
public func gather(_ table: Tensor, rows ids: [Int32], constant: Int? = nil) -> Tensor {
  let width = table.columns
  let output = Tensor.filled([ids.count, width]) {
    Embeddings.gatherChecked(ids, from: table.slice, width: width, into: $0)
  }
  let tableShape = table.shape
  return output.recorded(from: [table]) { gradient, sink in
    sink.accumulate(into: 0, shape: tableShape) { destination, beta in
      if beta == 0 { destination.fill(0) }
      if let constant {
        for (place, id) in ids.enumerated() where Int(id) == constant {
          gradient.withMutableSlice { $0[place * width..<(place + 1) * width].fill(0) }
        }
      }
      Embeddings.scatterAdd(Slice(ids), gradient.slice, width: width, into: destination)
    }
  }
}

/// Rows of a frozen table: `[ids.count, columns]`.
public func gather(_ table: any WeightMatrix, rows ids: [Int32]) -> Tensor {
  Tensor.filled([ids.count, table.columns]) { table.gatherRows(ids, into: $0) }
}

/// Columns of a matrix as rows: `[rows, n]` and k ids to `[k, rows]`, an embedding whose table is
/// stored transposed. Meant for matrices of few rows, such as a low-rank factor.
///
/// - Parameters:
///   - matrix: `[rows, n]`.
///   - ids: Columns of it.
///   - constant: A column that gets no gradient, as that of a padding token.
public func selectColumns(_ matrix: Tensor, _ ids: [Int32], constant: Int? = nil) -> Tensor {
  let (rows, columns) = (matrix.shape[0], matrix.columns)
  let output = Tensor.filled([ids.count, rows]) { destination in
    matrix.slice.withSpan { source in
      destination.withMutableSpan { target in
        for (place, id) in ids.enumerated() {
          for row in 0..<rows { target[place * rows + row] = source[row * columns + Int(id)] }
        }
      }
    }
  }
  return output.recorded(from: [matrix]) { gradient, sink in
    sink.accumulate(into: 0, shape: [rows, columns]) { destination, beta in
      if beta == 0 { destination.fill(0) }
      gradient.slice.withSpan { source in
        destination.withMutableSpan { target in
          for (place, id) in ids.enumerated() where Int(id) != constant {
            for row in 0..<rows { target[row * columns + Int(id)] += source[place * rows + row] }
          }
        }
      }
    }
  }
}

extension Embeddings {
  /// Gathers rows whose ids the caller has checked, as models do before they run.
  static func gatherChecked(
    _ ids: [Int32], from table: Slice<Float>, width: Int, into output: MutableSlice<Float>
  ) {
    do { try gather(Slice(ids), from: table, width: width, into: output) } catch {
      preconditionFailure("\(error)")
    }
  }

  /// The same from a table of 16-bit floats.
  static func gatherChecked(
    _ ids: [Int32], from table: Slice<UInt16>, format: HalfFormat, width: Int,
    into output: MutableSlice<Float>
  ) {
    do {
      try gather(Slice(ids), from: table, format: format, width: width, into: output)
    } catch {
      preconditionFailure("\(error)")
    }
  }
}
