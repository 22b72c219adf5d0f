import CKernels

/// What a convolution sees beyond the edge of its input.
public enum PaddingMode: String, Sendable, CaseIterable {
  /// Zeros.
  case zeros
  /// The input mirrored at its edge, the edge itself once.
  case reflect
  /// The edge's value.
  case replicate
  /// The input from its other end.
  case circular
}

/// The windows of a convolution over images `[n, channels, size…]` with up to three dimensions: the matrix that
/// turns a convolution into a product, `[n · positions, channels · kernel]`.
///
/// Which input each tap sees is kept in a table for each dimension, so stride, dilation and every kind of padding
/// cost the same, and the transpose is exact for all of them.
public struct ConvolutionWindows: Sendable {
  /// Number of channels of the input.
  public let channels: Int
  /// Extent of the input in each dimension.
  public let size: [Int]
  /// Extent of the kernel in each dimension.
  public let kernel: [Int]
  /// Extent of the output in each dimension.
  public let positions: [Int]
  private let taps: [Slice<Int32>]

  /// Describes windows; lists have one number for each dimension.
  ///
  /// - Parameters:
  ///   - channels: Channels of the input.
  ///   - size: Extents of the input.
  ///   - kernel: Extents of the kernel.
  ///   - stride: Steps from one window to the next.
  ///   - dilation: Steps from one tap to the next.
  ///   - padding: How far the windows reach beyond the input, at the start and at the end.
  ///   - mode: What they see there.
  /// - Precondition: At least one window fits, and mirrored or circular padding is no larger than the input.
  public init(
    channels: Int, size: [Int], kernel: [Int], stride: [Int], dilation: [Int],
    padding: [(start: Int, end: Int)], mode: PaddingMode
  ) {
    precondition((1...3).contains(size.count) && kernel.count == size.count)
    precondition(
      stride.count == size.count && dilation.count == size.count && padding.count == size.count)
    self.channels = channels
    self.size = size
    self.kernel = kernel
    var positions: [Int] = []
    var taps: [Slice<Int32>] = []
    for d in size.indices {
      let room = size[d] + padding[d].start + padding[d].end - dilation[d] * (kernel[d] - 1) - 1
      precondition(room >= 0, "a kernel of \(kernel) is larger than the padded input of \(size)")
      let count = room / stride[d] + 1
      positions.append(count)
      var table: [Int32] = []
      table.reserveCapacity(count * kernel[d])
      for position in 0..<count {
        for tap in 0..<kernel[d] {
          let place = position * stride[d] + tap * dilation[d] - padding[d].start
          table.append(Self.source(place, size: size[d], mode))
        }
      }
      taps.append(Slice(table))
    }
    self.positions = positions
    self.taps = taps
  }

  /// The coordinate that stands for one beyond the edge; -1 for a zero.
  private static func source(_ place: Int, size: Int, _ mode: PaddingMode) -> Int32 {
    if (0..<size).contains(place) { return Int32(place) }
    let inner: Int
    switch mode {
    case .zeros: return -1
    case .reflect: inner = place < 0 ? -place : 2 * (size - 1) - place
    case .replicate: inner = place < 0 ? 0 : size - 1
    case .circular: inner = place < 0 ? place + size : place - size
    }
    precondition((0..<size).contains(inner), "\(mode) padding is larger than the input")
    return Int32(inner)
  }

  /// Number of windows of an image.
  public var positionCount: Int { positions.reduce(1, *) }
  /// Number of elements in a window.
  public var windowSize: Int { kernel.reduce(channels, *) }
  /// Number of elements of an image.
  public var imageSize: Int { size.reduce(channels, *) }

  /// Copies windows into the rows of a matrix.
  ///
  /// - Parameters:
  ///   - x: Images `[n, channels, size…]`.
  ///   - rows: Which windows, counted over all images.
  ///   - columns: `[rows.count, windowSize]`.
  public func unfold(_ x: Slice<Float>, rows: Range<Int>, into columns: MutableSlice<Float>) {
    check(x.count, columns.count, rows)
    withDescription { windows in
      Parallel.split(rows.count, grain: grain) { r in
        withUnsafePointer(to: windows) {
          pk_unfold(
            $0, x.pointer, rows.lowerBound + r.lowerBound, r.count,
            columns.pointer + r.lowerBound * windowSize)
        }
      }
    }
  }

  /// The transpose of ``unfold(_:rows:into:)``: adds the rows of a matrix to the places that the windows see.
  ///
  /// - Parameters:
  ///   - columns: `[rows.count, windowSize]`.
  ///   - rows: Which windows.
  ///   - x: Images `[n, channels, size…]`, added to.
  public func fold(_ columns: Slice<Float>, rows: Range<Int>, into x: MutableSlice<Float>) {
    check(x.count, columns.count, rows)
    withDescription { windows in
      // Windows overlap within a channel, never between channels.
      Parallel.split(channels, grain: max(1, grain * channels / max(rows.count, 1))) { c in
        withUnsafePointer(to: windows) {
          pk_fold(
            $0, columns.pointer, rows.lowerBound, rows.count, c.lowerBound, c.count, x.pointer)
        }
      }
    }
  }

  private var grain: Int { max(1, Parallel.lightGrain / max(windowSize, 1)) }

  private func check(_ x: Int, _ columns: Int, _ rows: Range<Int>) {
    precondition(
      columns == rows.count * windowSize, "\(columns) elements for \(rows.count) windows")
    precondition(
      imageSize > 0 && x % imageSize == 0 && rows.upperBound <= x / imageSize * positionCount,
      "windows \(rows) of \(x) elements")
  }

  private func withDescription(_ body: (pk_windows) -> Void) {
    // One and two dimensions are three, the first of which have extent 1.
    let missing = 3 - size.count
    func three(_ values: [Int]) -> [Int] { .init(repeating: 1, count: missing) + values }
    let (s, k, p) = (three(size), three(kernel), three(positions))
    let tables = [Slice<Int32>](repeating: Self.single, count: missing) + taps
    withExtendedLifetime(tables) {
      body(
        pk_windows(
          channels: channels, size0: s[0], size1: s[1], size2: s[2], kernel0: k[0], kernel1: k[1],
          kernel2: k[2], positions0: p[0], positions1: p[1], positions2: p[2],
          taps0: tables[0].pointer, taps1: tables[1].pointer, taps2: tables[2].pointer))
    }
  }

  private static let single = Slice<Int32>([0])
}
