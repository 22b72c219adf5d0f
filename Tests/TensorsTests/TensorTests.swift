import BLASKernels
import Testing

@testable import Tensors

/// Value semantics, shapes and parameters.
struct TensorTests {
  @Test func copiesDoNotChangeWithTheOriginal() {
    var a = Tensor(shape: [2, 2], scalars: [1, 2, 3, 4])
    let copy = a
    let rows = a.rowRange(1..<2)
    let reshaped = a.reshaped([4])
    a.withMutableSlice { $0.fill(9) }
    #expect(a.scalars == [9, 9, 9, 9])
    #expect(copy.scalars == [1, 2, 3, 4])
    #expect(rows.scalars == [3, 4])
    #expect(reshaped.scalars == [1, 2, 3, 4])
  }

  @Test func unsharedMemoryIsWrittenInPlace() {
    var a = Tensor.zeros([64])
    let before = ObjectIdentifier(a.storage)
    a.withMutableSlice { $0.fill(1) }
    #expect(ObjectIdentifier(a.storage) == before)
    let copy = a
    a.withMutableSlice { $0.fill(2) }
    #expect(ObjectIdentifier(a.storage) != before)
    #expect(copy.scalars.allSatisfy { $0 == 1 })
  }

  @Test func writingARowRangeLeavesTheWholeAlone() {
    let whole = numbers([3, 4])
    let expected = whole.scalars
    var part = whole.rowRange(1..<3)
    part.withMutableSlice { $0.fill(0) }
    #expect(part.scalars == [Float](repeating: 0, count: 8))
    #expect(whole.scalars == expected)
    // A range that outlives its whole is written at its own place.
    func lastRow() -> Tensor { numbers([3, 4]).rowRange(2..<3) }
    var row = lastRow()
    row.withMutableSlice { $0[0] = 5 }
    #expect(row.scalars == [5] + expected[9...])
  }

  @Test func addingATensorToItselfDoubles() {
    var a = Tensor(shape: [3], scalars: [1, 2, 3])
    a.accumulate(a)
    #expect(a.scalars == [2, 4, 6])
  }

  @Test func shapesOfScalarsMatricesAndEmptyTensors() {
    let scalar = Tensor(4)
    #expect(scalar.shape == [] && scalar.count == 1 && scalar.rows == 1 && scalar.columns == 1)
    #expect(scalar.item == 4)
    let cube = Tensor.zeros([2, 3, 4])
    #expect(cube.rows == 6 && cube.columns == 4)
    let empty = Tensor.zeros([0, 5])
    #expect(empty.rows == 0 && empty.scalars.isEmpty && empty.allFinite)
    #expect(
      Tensor(shape: [9], scalars: [Float](repeating: 1, count: 9)).description.hasSuffix(", …]"))
  }

  @Test func rowsAreStackedReplacedAndTransposed() {
    let a = Tensor(shape: [1, 2], scalars: [1, 2])
    let b = Tensor(shape: [2, 2], scalars: [3, 4, 5, 6])
    var all = Tensor.stackingRows([a, b])
    #expect(all.shape == [3, 2] && all.scalars == [1, 2, 3, 4, 5, 6])
    #expect(all.transposed().scalars == [1, 3, 5, 2, 4, 6])
    all.copyRows(of: a, at: 2)
    #expect(all.scalars == [1, 2, 3, 4, 1, 2])
    #expect(all.selectRows([2, 0, 2]).scalars == [1, 2, 1, 2, 1, 2])
    all.replaceRows([2, 0], with: b)
    #expect(all.scalars == [5, 6, 3, 4, 3, 4])
  }

  @Test func inspectionFindsWhatIsThere() {
    let x = Tensor(shape: [2, 3], scalars: [1, -7, 3, 2, 2, 1])
    #expect(x.maximumMagnitude == 7)
    #expect(x.sumOfSquares == 68)
    #expect(x.argmaxOfRows == [2, 0])
    #expect(x.allFinite)
    #expect(!Tensor(shape: [2], scalars: [1, .nan]).allFinite)
    #expect(!Tensor(shape: [2], scalars: [1, -.infinity]).allFinite)
  }

  @Test func randomNumbersDependOnTheKeyAlone() {
    let key = DropoutKey(seed: 3, stream: 5)
    let a = Tensor.normal([1000], deviation: 2, key: key)
    #expect(a.scalars == Tensor.normal([1000], deviation: 2, key: key).scalars)
    #expect(
      a.scalars != Tensor.normal([1000], deviation: 2, key: DropoutKey(seed: 3, stream: 6)).scalars)
    // A standard error is 2/√1000 for the mean, 2/√2000 for the deviation; four of them are allowed.
    let mean = a.doubles.reduce(0, +) / 1000
    let deviation = (a.sumOfSquares / 1000 - mean * mean).squareRoot()
    #expect(abs(mean) < 0.26 && abs(deviation - 2) < 0.18)
    let u = Tensor.uniform([1000], bound: 0.5, key: key)
    #expect(u.scalars.allSatisfy { $0 >= -0.5 && $0 < 0.5 } && u.maximumMagnitude > 0.45)
  }

  @Test func parametersCountTheirVersions() {
    let p = Parameter(Tensor(shape: [2], scalars: [1, 2]))
    let (old, version) = (p.value, p.version)
    p.update { $0.withMutableSlice { $0.fill(7) } }
    #expect(p.version == version + 1)
    #expect(old.scalars == [1, 2] && p.value.scalars == [7, 7])
    p.assign(old)
    #expect(p.version == version + 2 && p.value.scalars == [1, 2])
    _ = p.tensor
    #expect(p.version == version + 2)
    #expect(p.id != Parameter(old).id)
  }
}
