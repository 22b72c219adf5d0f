import PEFTSupport
import Testing

@testable import BLASKernels

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

let shapes = [
  (1, 1), (1, 7), (3, 5), (2, 16), (5, 17), (7, 64), (64, 33), (130, 96), (9, 2500), (300, 384),
]

/// Expected values: the definitions, in double precision.
extension Kernels {
  @Suite struct RowsTests {
    @Test func broadcasts() {
      atEveryLevel { level in
        for (rows, columns) in shapes {
          let x = numbers(rows * columns, seed: 1)
          let (row, column) = (numbers(columns, seed: 2), numbers(rows, seed: 3))
          let y = MutableSlice<Float>(repeating: .nan, count: x.count)
          func expect(_ f: (Int, Int) -> Double) {
            let expected = (0..<x.count).map { f($0 / columns, $0 % columns) }
            #expect(
              relativeError(y.array, expected, floor: 1e-3) < 2e-7, "\(level), \(rows)×\(columns)")
          }
          func at(_ i: Int, _ j: Int) -> Double { Double(x[i * columns + j]) }
          Rows.fill(rows: rows, columns: columns, with: Slice(row), into: y)
          expect { _, j in Double(row[j]) }
          Rows.addBias(rows: rows, columns: columns, Slice(x), Slice(row), into: y)
          expect { i, j in Double(Float(at(i, j)) + row[j]) }
          Rows.scaleColumns(rows: rows, columns: columns, Slice(x), by: Slice(row), into: y)
          expect { i, j in at(i, j) * Double(row[j]) }
          Rows.scaleRows(rows: rows, columns: columns, Slice(x), by: Slice(column), into: y)
          expect { i, j in at(i, j) * Double(column[i]) }
          Rows.transpose(rows: rows, columns: columns, Slice(x), into: y)
          let transposed = y.array
          #expect((0..<x.count).allSatisfy { transposed[$0] == x[$0 % rows * columns + $0 / rows] })
        }
      }
    }

    @Test func reductions() {
      atEveryLevel { level in
        for (rows, columns) in shapes {
          let (x, y) = (numbers(rows * columns, seed: 4), numbers(rows * columns, seed: 5))
          let (row, column) = (
            MutableSlice<Float>(repeating: .nan, count: columns),
            MutableSlice<Float>(repeating: .nan, count: rows)
          )
          func columnSums(_ f: (Int) -> Double) -> [Double] {
            (0..<columns).map { j in (0..<rows).reduce(0) { $0 + f($1 * columns + j) } }
          }
          func rowSums(_ f: (Int) -> Double) -> [Double] {
            (0..<rows).map { i in (0..<columns).reduce(0) { $0 + f(i * columns + $1) } }
          }
          let comment = Comment("\(level), \(rows)×\(columns)")
          Rows.columnSums(rows: rows, columns: columns, Slice(x), into: row)
          #expect(errorOfLargest(row.array, columnSums { Double(x[$0]) }) < 1e-6, comment)
          Rows.columnDots(rows: rows, columns: columns, Slice(x), Slice(y), into: row)
          #expect(
            errorOfLargest(row.array, columnSums { Double(x[$0]) * Double(y[$0]) }) < 1e-6, comment)
          Rows.rowDots(rows: rows, columns: columns, Slice(x), Slice(y), into: column)
          #expect(
            errorOfLargest(column.array, rowSums { Double(x[$0]) * Double(y[$0]) }) < 1e-7, comment)
          Rows.squaredNorms(rows: rows, columns: columns, Slice(x), into: column)
          #expect(
            relativeError(column.array, rowSums { Double(x[$0]) * Double(x[$0]) }) < 1e-7, comment)
          for format in HalfFormat.allCases {
            let half = MutableSlice<UInt16>(count: x.count)
            Conversion.narrow(Slice(x), to: format, into: half)
            let wide = MutableSlice<Float>(count: x.count)
            Conversion.widen(half.readOnly, from: format, into: wide)
            let w = wide.array
            Rows.squaredNorms(
              rows: rows, columns: columns, half.readOnly, format: format, into: column)
            #expect(
              relativeError(column.array, rowSums { Double(w[$0]) * Double(w[$0]) }) < 1e-7, comment
            )
          }
        }
      }
    }

    @Test func argmax() {
      atEveryLevel { level in
        for (rows, columns) in shapes {
          var x = numbers(rows * columns, seed: 6)
          // Equal largest elements: the first counts.
          for i in 0..<rows where columns > 4 {
            x[i * columns + columns / 2] = 2
            x[i * columns + columns - 1] = 2
          }
          let y = MutableSlice<Int32>(count: rows)
          Rows.argmax(rows: rows, columns: columns, Slice(x), into: y)
          for i in 0..<rows {
            let row = x[i * columns..<(i + 1) * columns]
            let expected = row.firstIndex(of: row.max()!)! - row.startIndex
            #expect(Int(y[i]) == expected, "\(level), \(rows)×\(columns)")
          }
        }
      }
    }

    @Test func rotary() {
      atEveryLevel { level in
        for (tokens, heads, dim) in [(1, 1, 2), (3, 2, 6), (5, 3, 32), (40, 14, 64), (7, 1, 80)] {
          let half = dim / 2
          let x = numbers(tokens * heads * dim, seed: 1)
          let angles = numbers(tokens * half, seed: 2, in: 0...6)
          let (c, s) = (angles.map { cosf($0) }, angles.map { sinf($0) })
          let y = MutableSlice(x)
          Rows.rotary(
            tokens: tokens, heads: heads, headDim: dim, y.readOnly, cosine: Slice(c),
            sine: Slice(s), into: y)
          let expected = (0..<x.count).map { index in
            let (token, i) = (index / (heads * dim), index % dim)
            let (cosine, sine) = (
              Double(c[token * half + i % half]), Double(s[token * half + i % half])
            )
            let partner = Double(i < half ? x[index + half] : x[index - half])
            return Double(x[index]) * cosine + (i < half ? -partner : partner) * sine
          }
          #expect(errorOfLargest(y.array, expected) < 2e-7, "\(level), \(tokens), \(heads), \(dim)")
          Rows.rotary(
            tokens: tokens, heads: heads, headDim: dim, y.readOnly, cosine: Slice(c),
            sine: Slice(s), inverse: true, into: y)
          #expect(
            errorOfLargest(y.array, doubles(x)) < 5e-7, "\(level), \(tokens), \(heads), \(dim)")
        }
      }
    }

    @Test func embeddings() throws {
      try atEveryLevel { level in
        for width in [1, 7, 16, 33, 384] {
          let rows = 50
          let table = numbers(rows * width, seed: 1)
          let ids: [Int32] = (0..<70).map { Int32($0 * 7 % 13) } + [49, 0]
          let y = MutableSlice<Float>(count: ids.count * width)
          try Embeddings.gather(Slice(ids), from: Slice(table), width: width, into: y)
          let got = y.array
          #expect(
            got.indices.allSatisfy { got[$0] == table[Int(ids[$0 / width]) * width + $0 % width] })
          for format in HalfFormat.allCases {
            let half = MutableSlice<UInt16>(count: table.count)
            Conversion.narrow(Slice(table), to: format, into: half)
            let wide = MutableSlice<Float>(count: table.count)
            Conversion.widen(half.readOnly, from: format, into: wide)
            let expected = MutableSlice<Float>(count: y.count)
            try Embeddings.gather(Slice(ids), from: wide.readOnly, width: width, into: expected)
            try Embeddings.gather(
              Slice(ids), from: half.readOnly, format: format, width: width, into: y)
            #expect(y.array == expected.array, "\(level), \(width)")
          }
          var expected = doubles(table)
          let dy = numbers(ids.count * width, seed: 2)
          for i in dy.indices { expected[Int(ids[i / width]) * width + i % width] += Double(dy[i]) }
          let gradient = MutableSlice(table)
          Embeddings.scatterAdd(Slice(ids), Slice(dy), width: width, into: gradient)
          #expect(errorOfLargest(gradient.array, expected) < 5e-7, "\(level), \(width)")
        }
      }
    }

    @Test func gatherRefusesBadIDs() {
      let y = MutableSlice<Float>(count: 4)
      for bad: Int32 in [-1, 3] {
        #expect {
          try Embeddings.gather(Slice([0, bad]), from: Slice(numbers(6)), width: 2, into: y)
        } throws: { error in
          let error = error as? PEFTError
          return error?.code == .invalidData && error?.message.contains("\(bad)") == true
        }
      }
    }
  }
}
