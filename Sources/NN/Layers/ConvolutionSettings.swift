import BLASKernels
import PEFTSupport

/// The shape of a convolution, in PyTorch's terms; lists have one number for each dimension.
public struct ConvolutionSettings: Sendable, Equatable {
  /// How far windows reach beyond the input.
  public enum Padding: Sendable, Equatable {
    /// By this much on both sides.
    case symmetric([Int])
    /// As far as it takes for the output to have the input's size; one more at the end where the
    /// sum is odd.
    case same
  }

  /// Channels of the input.
  public var inputChannels: Int
  /// Channels of the output.
  public var outputChannels: Int
  /// Extents of the kernel.
  public var kernel: [Int]
  /// Steps from one window to the next.
  public var stride: [Int]
  /// How far windows reach beyond the input.
  public var padding: Padding
  /// Steps from one tap to the next.
  public var dilation: [Int]
  /// Number of runs of channels that only see one another.
  public var groups: Int
  /// What windows see beyond the input.
  public var paddingMode: PaddingMode

  /// Describes a convolution; stride and dilation are 1, and there is no padding, unless given.
  public init(
    _ inputChannels: Int, _ outputChannels: Int, kernel: [Int], stride: [Int]? = nil,
    padding: Padding? = nil, dilation: [Int]? = nil, groups: Int = 1,
    paddingMode: PaddingMode = .zeros
  ) {
    self.inputChannels = inputChannels
    self.outputChannels = outputChannels
    self.kernel = kernel
    self.stride = stride ?? kernel.map { _ in 1 }
    self.padding = padding ?? .symmetric(kernel.map { _ in 0 })
    self.dilation = dilation ?? kernel.map { _ in 1 }
    self.groups = groups
    self.paddingMode = paddingMode
  }

  /// Refuses shapes that no convolution has.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration`.
  public func validate() throws(PEFTError) {
    func require(_ condition: Bool, _ text: String) throws(PEFTError) {
      if !condition { throw PEFTError(.invalidConfiguration, "a convolution with \(text)") }
    }
    let dimensions = kernel.count
    try require((1...3).contains(dimensions), "\(dimensions) dimensions; 1 to 3 are supported")
    try require(kernel.allSatisfy { $0 > 0 }, "the kernel \(kernel)")
    try require(
      stride.count == dimensions && stride.allSatisfy { $0 > 0 }, "the stride \(stride)")
    try require(
      dilation.count == dimensions && dilation.allSatisfy { $0 > 0 }, "the dilation \(dilation)")
    switch padding {
    case .same: try require(stride.allSatisfy { $0 == 1 }, "padding 'same' and stride \(stride)")
    case .symmetric(let sizes):
      try require(
        sizes.count == dimensions && sizes.allSatisfy { $0 >= 0 }, "the padding \(sizes)")
    }
    try require(
      groups > 0 && inputChannels > 0 && outputChannels > 0 && inputChannels % groups == 0
        && outputChannels % groups == 0,
      "\(inputChannels) and \(outputChannels) channels in \(groups) groups")
  }

  /// Refuses images that the convolution cannot be applied to.
  ///
  /// - Throws: ``PEFTError`` `shapeMismatch`.
  public func checkInput(_ shape: [Int]) throws(PEFTError) {
    let size = Array(shape.dropFirst(2))
    guard shape.count == kernel.count + 2, shape[1] == inputChannels,
      size.indices.allSatisfy({ d in
        let (start, end) = edges(d)
        let reach = max(start, end)
        let fits = size[d] + start + end > dilation[d] * (kernel[d] - 1)
        switch paddingMode {
        case .zeros, .replicate: return fits && (size[d] > 0 || paddingMode == .zeros)
        case .reflect: return fits && reach < size[d]
        case .circular: return fits && reach <= size[d]
        }
      })
    else {
      throw PEFTError(
        .shapeMismatch,
        "an input of shape \(shape) for a convolution of \(inputChannels) channels with the "
          + "kernel \(kernel), padding \(kernel.indices.map { edges($0).start })")
    }
  }

  /// The windows over an input of the given extents.
  func windows(_ size: [Int]) -> ConvolutionWindows {
    ConvolutionWindows(
      channels: inputChannels, size: size, kernel: kernel, stride: stride, dilation: dilation,
      padding: kernel.indices.map { edges($0) }, mode: paddingMode)
  }

  private func edges(_ dimension: Int) -> (start: Int, end: Int) {
    switch padding {
    case .symmetric(let sizes): return (sizes[dimension], sizes[dimension])
    case .same:
      let total = dilation[dimension] * (kernel[dimension] - 1)
      return (total / 2, total - total / 2)
    }
  }

  /// What PyTorch prints between the parentheses.
  public func attributes(bias: Bool) -> String {
    var text = "\(inputChannels), \(outputChannels), kernel_size=\(Self.tuple(kernel))"
    text += ", stride=\(Self.tuple(stride))"
    switch padding {
    case .same: text += ", padding=same"
    case .symmetric(let sizes):
      if sizes.contains(where: { $0 != 0 }) { text += ", padding=\(Self.tuple(sizes))" }
    }
    if dilation.contains(where: { $0 != 1 }) { text += ", dilation=\(Self.tuple(dilation))" }
    if groups != 1 { text += ", groups=\(groups)" }
    if !bias { text += ", bias=False" }
    if paddingMode != .zeros { text += ", padding_mode=\(paddingMode.rawValue)" }
    return text
  }

  private static func tuple(_ values: [Int]) -> String {
    values.count == 1
      ? "(\(values[0]),)" : "(\(values.map(String.init).joined(separator: ", ")))"
  }
}
