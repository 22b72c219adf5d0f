import BLASKernels
import Tensors

/// PyTorch's Conv1d, Conv2d and Conv3d: `[n, channels, size…]` to `[n, channels, positions…]`.
///
/// Adapters see ``HostInput/images(_:)`` and outputs with the channels last, `[n, positions…,
/// outputFeatures]`: a row of features for each position, as a linear layer has them. The
/// weight's matrix is PyTorch's weight flattened, `[outputFeatures, channels/groups · kernel]`.
public final class Convolution: AdapterHost {
  /// The weight and bias.
  public var parameters: HostParameters
  /// What the layer's slot holds.
  public var adapters: (any HostAdapters)?
  /// The shape.
  public let settings: ConvolutionSettings

  /// Creates a layer.
  ///
  /// - Parameters:
  ///   - weight: `[outputChannels, inputChannels/groups · kernel]`.
  ///   - bias: `[outputChannels]`.
  ///   - settings: Valid settings; see ``ConvolutionSettings/validate()``.
  public init(_ weight: any WeightMatrix, bias: Parameter?, _ settings: ConvolutionSettings) {
    parameters = HostParameters(
      weight: .matrix(weight), bias: bias,
      form: .kernel([settings.inputChannels / settings.groups] + settings.kernel))
    self.settings = settings
  }

  /// Number of input channels.
  public var inputFeatures: Int { settings.inputChannels }
  /// Number of output channels.
  public var outputFeatures: Int { settings.outputChannels }
  /// Extents of the kernel.
  public var kernelShape: [Int] { settings.kernel }
  /// Number of runs of channels that only see one another.
  public var groups: Int { settings.groups }

  /// Applies the layer, adapters included.
  ///
  /// - Precondition: ``ConvolutionSettings/checkInput(_:)`` accepts the shape; models check their
  ///   input before.
  public func callAsFunction(_ x: Tensor, _ context: ForwardContext) -> Tensor {
    channelsFirst(forward(.images(x), context))
  }

  /// The layer's function with given parameters and without adapters, channels last.
  public func base(_ input: HostInput, _ parameters: HostParameters) -> Tensor {
    let x = images(input)
    let windows = settings.windows(Array(x.shape.dropFirst(2)))
    switch parameters.weight {
    case .matrix(let matrix):
      return convolution(
        x, matrix, windows, groups: groups, bias: parameters.bias?.tensor)
    case .parameter(let weight):
      return convolution(
        x, weight.tensor, windows, groups: groups, bias: parameters.bias?.tensor)
    }
  }

  /// The convolution with another kernel of the same extents over all input channels.
  public func project(_ input: HostInput, by factor: Tensor) -> Tensor {
    let x = images(input)
    return convolution(x, factor, settings.windows(Array(x.shape.dropFirst(2))))
  }

  private func images(_ input: HostInput) -> Tensor {
    guard case .images(let x) = input else {
      preconditionFailure("a convolution takes images, not features or token ids")
    }
    return x
  }

  /// The class name that PyTorch prints.
  public var typeName: String { "Conv\(settings.kernel.count)d" }
  /// What PyTorch prints between the parentheses.
  public var attributes: String { settings.attributes(bias: parameters.bias != nil) }
}
