import BLASKernels
import Tensors
import Testing

/// Convolutions against their definition in double precision, and gradients against differences.
struct ConvolutionTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var images = 2
    var channels: Int
    var outputs: Int
    var size: [Int]
    var kernel: [Int]
    var stride: [Int]
    var dilation: [Int]
    var padding: [Int]
    var mode = PaddingMode.zeros
    var groups = 1

    var testDescription: String { "\(channels)→\(outputs) \(size) \(kernel) \(mode) \(groups)" }

    var windows: ConvolutionWindows {
      ConvolutionWindows(
        channels: channels, size: size, kernel: kernel, stride: stride, dilation: dilation,
        padding: padding.map { ($0, $0) }, mode: mode)
    }
  }

  static let cases = [
    Case(
      channels: 3, outputs: 4, size: [9], kernel: [3], stride: [2], dilation: [2], padding: [1]),
    Case(
      channels: 2, outputs: 5, size: [6, 5], kernel: [3, 2], stride: [1, 2], dilation: [1, 1],
      padding: [1, 0]),
    Case(
      channels: 4, outputs: 6, size: [5, 4], kernel: [3, 3], stride: [2, 1], dilation: [1, 1],
      padding: [1, 1], groups: 2),
    Case(
      channels: 4, outputs: 4, size: [4, 4], kernel: [3, 3], stride: [1, 1], dilation: [1, 1],
      padding: [1, 1], groups: 4),
    Case(
      channels: 2, outputs: 3, size: [5, 4], kernel: [3, 3], stride: [1, 1], dilation: [1, 1],
      padding: [2, 1], mode: .reflect),
    Case(
      channels: 2, outputs: 3, size: [5, 4], kernel: [3, 3], stride: [2, 1], dilation: [1, 1],
      padding: [1, 2], mode: .replicate),
    Case(
      channels: 2, outputs: 3, size: [5, 4], kernel: [3, 3], stride: [1, 1], dilation: [2, 1],
      padding: [2, 2], mode: .circular),
    Case(
      channels: 2, outputs: 3, size: [3, 4, 3], kernel: [2, 1, 3], stride: [1, 2, 1],
      dilation: [1, 1, 1], padding: [1, 0, 1]),
    Case(
      images: 1, channels: 5, outputs: 2, size: [3, 3], kernel: [1, 1], stride: [1, 1],
      dilation: [1, 1], padding: [0, 0]),
  ]

  /// The sum over channels and taps, with the padding mode written out.
  private func reference(_ c: Case, x: Tensor, weight: Tensor, bias: Tensor) -> [Double] {
    let dimensions = c.size.count
    let (xs, ws, bs) = (x.doubles, weight.doubles, bias.doubles)
    let counts = (0..<dimensions).map { d -> Int in
      let reach: Int = c.dilation[d] * (c.kernel[d] - 1) + 1
      let room: Int = c.size[d] + 2 * c.padding[d] - reach
      return room / c.stride[d] + 1
    }
    func places(_ extents: [Int]) -> [[Int]] {
      var list: [[Int]] = [[]]
      for extent in extents {
        list = list.flatMap { at in (0..<extent).map { at + [$0] } }
      }
      return list
    }
    func index(_ at: [Int], _ extents: [Int]) -> Int {
      var result = 0
      for (place, extent) in zip(at, extents) { result = result * extent + place }
      return result
    }
    func source(_ place: Int, _ size: Int) -> Int? {
      if place >= 0, place < size { return place }
      switch c.mode {
      case .zeros: return nil
      case .reflect: return place < 0 ? -place : 2 * size - 2 - place
      case .replicate: return min(max(place, 0), size - 1)
      case .circular: return (place + size) % size
      }
    }
    let (inGroup, outGroup) = (c.channels / c.groups, c.outputs / c.groups)
    var result: [Double] = []
    for image in 0..<c.images {
      for position in places(counts) {
        for output in 0..<c.outputs {
          var sum = bs[output]
          for channel in 0..<inGroup {
            for tap in places(c.kernel) {
              var at: [Int] = []
              for d in 0..<dimensions {
                let start: Int = position[d] * c.stride[d] - c.padding[d]
                if let place = source(start + tap[d] * c.dilation[d], c.size[d]) {
                  at.append(place)
                }
              }
              guard at.count == dimensions else { continue }
              let from = output / outGroup * inGroup + channel
              let xIndex = index([image, from] + at, [c.images, c.channels] + c.size)
              let wIndex = index([output, channel] + tap, [c.outputs, inGroup] + c.kernel)
              sum += xs[xIndex] * ws[wIndex]
            }
          }
          result.append(sum)
        }
      }
    }
    return result
  }

  @Test(arguments: cases)
  func followsItsDefinition(_ c: Case) {
    let x = numbers([c.images, c.channels] + c.size, seed: 1)
    let weight = numbers([c.outputs, c.channels / c.groups] + c.kernel, seed: 2)
    let bias = numbers([c.outputs], seed: 3)
    let expected = reference(c, x: x, weight: weight, bias: bias)
    let windows = c.windows
    let matrix = weight.reshaped([c.outputs, weight.count / c.outputs])
    let frozen = convolution(x, DenseMatrix(matrix), windows, groups: c.groups, bias: bias)
    #expect(frozen.shape == [c.images] + windows.positions + [c.outputs])
    #expect(error(frozen, expected) < 1e-6)
    let trained = convolution(x, weight, windows, groups: c.groups, bias: bias)
    #expect(trained.scalars == frozen.scalars)
    // A 16-bit weight is the same as its widened values.
    let half = HalfMatrix(rounding: matrix, to: .bfloat16)
    let widened = convolution(x, DenseMatrix(half.dequantized()), windows, groups: c.groups)
    #expect(
      error(convolution(x, half, windows, groups: c.groups), widened.doubles) < 1e-6)
  }

  @Test(arguments: cases)
  func gradientsEqualDifferences(_ c: Case) {
    let x = parameter([c.images, c.channels] + c.size, seed: 1)
    let weight = parameter([c.outputs, c.channels / c.groups] + c.kernel, seed: 2)
    let bias = parameter([c.outputs], seed: 3)
    let trained = GradientCheck([x, weight, bias]) {
      convolution(x.tensor, weight.tensor, c.windows, groups: c.groups, bias: bias.tensor)
    }
    #expect(trained.maximumError < 5e-3)
    let matrix = DenseMatrix(weight.value.reshaped([c.outputs, weight.value.count / c.outputs]))
    let frozen = GradientCheck([x, bias]) {
      channelsFirst(
        convolution(x.tensor, matrix, c.windows, groups: c.groups, bias: bias.tensor))
    }
    #expect(frozen.maximumError < 5e-3)
  }

  /// Unfolding in blocks: enough windows that one block does not hold them.
  @Test func manyWindowsGoBlockByBlock() {
    let windows = ConvolutionWindows(
      channels: 16, size: [160, 170], kernel: [3, 3], stride: [1, 1], dilation: [1, 1],
      padding: [(1, 1), (1, 1)], mode: .zeros)
    let x = numbers([1, 16, 160, 170], seed: 1)
    let weight = numbers([2, 16, 3, 3], seed: 2)
    let y = convolution(x, weight, windows)
    #expect(windows.positionCount * windows.windowSize > 3 * 1_048_576)
    // The convolution of a shifted part, in which no padding is seen, is part of the convolution.
    let rows = 100..<104
    let part = Tensor(
      shape: [1, 16, 6, 170],
      scalars: (0..<16).flatMap { (channel: Int) -> [Float] in
        let start = (channel * 160 + 99) * 170
        return Array(x.slice[start..<start + 6 * 170].array)
      })
    let small = ConvolutionWindows(
      channels: 16, size: [6, 170], kernel: [3, 3], stride: [1, 1], dilation: [1, 1],
      padding: [(0, 0), (1, 1)], mode: .zeros)
    let expected = convolution(part, weight, small)
    let place = rows.lowerBound * 170 * 2..<rows.upperBound * 170 * 2
    #expect(error(expected, Array(y.doubles[place])) < 1e-6)
  }

  @Test func channelsMoveToTheFront() {
    let x = numbers([2, 3, 2, 4], seed: 1)
    let y = channelsFirst(x)
    #expect(y.shape == [2, 4, 3, 2])
    let (from, to) = (x.scalars, y.scalars)
    for image in 0..<2 {
      for position in 0..<6 {
        for channel in 0..<4 {
          let source = (image * 6 + position) * 4 + channel
          let target = (image * 4 + channel) * 6 + position
          #expect(to[target] == from[source])
        }
      }
    }
  }
}
