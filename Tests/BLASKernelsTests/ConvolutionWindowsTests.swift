import Testing

@testable import BLASKernels

extension Kernels {
  /// Windows against their definition; folding against the transpose of unfolding.
  @Suite struct ConvolutionWindowsTests {
    static let modes = PaddingMode.allCases

    private func windows(_ mode: PaddingMode) -> ConvolutionWindows {
      ConvolutionWindows(
        channels: 3, size: [5, 6], kernel: [3, 2], stride: [2, 1], dilation: [1, 2],
        padding: [(1, 2), (2, 1)], mode: mode)
    }

    @Test func sizesFollowPyTorch() {
      // ⌊(size + padding − dilation·(kernel − 1) − 1) / stride⌋ + 1.
      let w = windows(.zeros)
      #expect(w.positions == [3, 7] && w.positionCount == 21)
      #expect(w.windowSize == 18 && w.imageSize == 90)
    }

    /// For arbitrary x and y: ⟨unfold x, y⟩ = ⟨x, fold y⟩, in parts as well as at once.
    @Test(arguments: modes)
    func foldIsTheTransposeOfUnfold(_ mode: PaddingMode) {
      let w = windows(mode)
      let rows = 2 * w.positionCount
      let x = (0..<2 * w.imageSize).map { Float(($0 * 37) % 101) / 50 - 1 }
      let y = (0..<rows * w.windowSize).map { Float(($0 * 53) % 97) / 48 - 1 }
      let columns = MutableSlice<Float>(count: y.count)
      w.unfold(Slice(x), rows: 0..<rows, into: columns)
      let left = zip(columns.array, y).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
      let folded = MutableSlice<Float>(repeating: 0, count: x.count)
      for range in [0..<5, 5..<30, 30..<rows] {
        let part = Slice(
          Array(y[range.lowerBound * w.windowSize..<range.upperBound * w.windowSize]))
        w.fold(part, rows: range, into: folded)
        let again = MutableSlice<Float>(count: range.count * w.windowSize)
        w.unfold(Slice(x), rows: range, into: again)
        #expect(
          again.array
            == Array(
              columns.array[range.lowerBound * w.windowSize..<range.upperBound * w.windowSize]))
      }
      let right = zip(x, folded.array).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
      #expect(abs(left - right) < 1e-4 * max(abs(left), 1))
    }

    /// The corner window of each mode, written out for one row of pixels.
    @Test(arguments: zip(modes, [[0, 0, 1, 2], [3, 2, 1, 2], [1, 1, 1, 2], [3, 4, 1, 2]]))
    func paddingShowsWhatItsModeSays(_ mode: PaddingMode, _ expected: [Float]) {
      let w = ConvolutionWindows(
        channels: 1, size: [4], kernel: [4], stride: [1], dilation: [1], padding: [(2, 2)],
        mode: mode)
      let columns = MutableSlice<Float>(count: 4)
      w.unfold(Slice([1, 2, 3, 4]), rows: 0..<1, into: columns)
      #expect(columns.array == expected)
    }

    @Test func transposesHaveStrides() {
      let x: [Float] = [1, 2, 3, 4, 5, 6, 7, 8]
      let y = MutableSlice<Float>(repeating: 0, count: 10)
      // The first three columns of [2, 4] into the first two columns of [3, 4].
      Rows.transpose(rows: 2, columns: 3, Slice(x), ldx: 4, into: y, ldy: 4)
      #expect(y.array == [1, 5, 0, 0, 2, 6, 0, 0, 3, 7])
    }
  }
}
