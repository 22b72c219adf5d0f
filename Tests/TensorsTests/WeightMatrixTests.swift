import BLASKernels
import Testing

@testable import Tensors

/// Every weight format does what the dense matrix of its dequantised values does.
struct WeightMatrixTests {
  static let shapes = [(1, 1), (3, 7), (17, 33), (64, 20)]

  static func formats(_ rows: Int, _ columns: Int) -> [any WeightMatrix] {
    let values = numbers([rows, columns], seed: 5)
    return [
      DenseMatrix(values), HalfMatrix(rounding: values, to: .bfloat16),
      HalfMatrix(rounding: values, to: .float16),
    ]
  }

  @Test(arguments: shapes)
  func productsEqualThoseOfTheValues(_ rows: Int, _ columns: Int) {
    for matrix in Self.formats(rows, columns) {
      let values = matrix.dequantized()
      #expect(matrix.rows == rows && matrix.columns == columns && matrix.count == rows * columns)
      let n = 5
      let (x, y) = (numbers([n, columns], seed: 2), numbers([n, rows], seed: 3))
      let expected = product(x.doubles, values.doubles, n: n, m: rows, k: columns)
      #expect(error(matrix.multiply(x), expected) < 1e-5, "\(matrix.format)")
      let back = product(y.doubles, values.transposed().doubles, n: n, m: columns, k: rows)
      var sum = numbers([n, columns], seed: 4)
      let start = sum.doubles
      sum.withMutableSlice { matrix.multiplyTransposed(y.slice, count: n, beta: 1, into: $0) }
      #expect(error(sum, zip(start, back).map(+)) < 1e-5, "\(matrix.format)")
      let norms = (0..<rows).map { row in
        values.doubles[row * columns..<(row + 1) * columns].reduce(0) { $0 + $1 * $1 }
      }
      #expect(error(matrix.squaredRowNorms(), norms) < 1e-5, "\(matrix.format)")
      let ids: [Int32] = [Int32(rows - 1), 0]
      let gathered = gather(matrix, rows: ids)
      #expect(gathered.scalars == gather(values, rows: ids).scalars)
      #expect(
        matrix.dequantized(rows: rows - 1..<rows).scalars
          == values.rowRange(rows - 1..<rows).scalars)
    }
  }

  @Test func mergingAddsOnceAndLeavesTheOriginal() throws {
    for matrix in Self.formats(17, 33) {
      let before = matrix.dequantized()
      let delta = numbers([17, 33], seed: 8)
      var covered: [Int] = []
      let merged = try matrix.merging { rows, block in
        covered += rows
        block.accumulate(delta.rowRange(rows))
      }
      #expect(covered == Array(0..<17))
      #expect(merged.format == matrix.format)
      #expect(matrix.dequantized().scalars == before.scalars)
      var sum = before
      sum.accumulate(delta)
      let expected: any WeightMatrix =
        switch matrix.format {
        case "bfloat16": HalfMatrix(rounding: sum, to: .bfloat16)
        case "float16": HalfMatrix(rounding: sum, to: .float16)
        default: DenseMatrix(sum)
        }
      #expect(merged.dequantized().scalars == expected.dequantized().scalars)
      struct Stop: Error {}
      #expect(throws: Stop.self) { try matrix.merging { _, _ in throw Stop() } }
    }
  }

  @Test func rowBlocksCoverAllRows() {
    let matrix = HalfMatrix(rounding: Tensor.zeros([5000, 1000]), to: .bfloat16)
    #expect(matrix.rowBlocks.count > 1)
    #expect(matrix.rowBlocks.flatMap { Array($0) } == Array(0..<5000))
    #expect(matrix.byteCount == 10_000_000)
  }
}
