import BLASKernels
import PEFTSupport
import Tensors
import Testing

@testable import NN

/// Convolutions, Conv1D and packed attention as layers; what PyTorch prints for them and computes
/// is also in the goldens of TunerLoRATests.
struct ConvolutionLayerTests {
  private let builder = ModuleBuilder(RandomSource(seed: 3, deviation: 0.5, precision: .float32))
  private let context = ForwardContext(SequenceLayout(lengths: [1, 1]))

  @Test func attributesAreWhatPyTorchPrints() throws {
    let settings = ConvolutionSettings(
      4, 6, kernel: [3, 5], stride: [2, 1], padding: .symmetric([1, 0]), dilation: [1, 2],
      groups: 2, paddingMode: .circular)
    let layer = try builder.convolution("c", settings, bias: false)
    #expect(
      layer.printed.text
        == "Conv2d(4, 6, kernel_size=(3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2), "
        + "groups=2, bias=False, padding_mode=circular)")
    let same = ConvolutionSettings(2, 2, kernel: [3], padding: .same)
    #expect(
      try builder.convolution("d", same, bias: true).printed.text
        == "Conv1d(2, 2, kernel_size=(3,), stride=(1,), padding=same)")
    #expect(try builder.conv1D("e", 3, 5).printed.text == "Conv1D(nf=5, nx=3)")
    #expect(
      try builder.multiheadAttention("f", 4, heads: 2).printed.text == """
        MultiheadAttention(
          (out_proj): NonDynamicallyQuantizableLinear(in_features=4, out_features=4, bias=True)
        )
        """)
  }

  @Test func parametersHaveTheNamesAndShapesOfFiles() throws {
    let conv = try builder.convolution(
      "c", ConvolutionSettings(4, 6, kernel: [3, 5], groups: 2), bias: true)
    #expect(conv.ownParameters.map(\.name) == ["weight", "bias"])
    #expect(conv.ownParameters.map(\.shape) == [[6, 2, 3, 5], [6]])
    #expect(conv.parameters.matrix.rows == 6 && conv.parameters.matrix.columns == 30)
    let linear = try builder.conv1D("e", 3, 5)
    #expect(linear.ownParameters.map(\.shape) == [[3, 5], [5]])
    #expect(linear.parameters.matrix.rows == 5 && linear.parameters.matrix.columns == 3)
    let attention = try builder.multiheadAttention("f", 4, heads: 2)
    #expect(
      attention.namedParameters().map(\.name)
        == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"])
  }

  /// A copy that is trained in full has the stored form and computes the same.
  @Test func trainableCopiesComputeTheSame() throws {
    let x = Tensor.normal([2, 4, 6, 7], deviation: 1, key: DropoutKey(seed: 1, stream: 1))
    let conv = try builder.convolution(
      "c", ConvolutionSettings(4, 6, kernel: [3, 5], groups: 2), bias: true)
    let convCopy = conv.parameters.trainableCopy()
    #expect(convCopy.info.map(\.shape) == [[6, 2, 3, 5], [6]])
    #expect(convCopy.matrix.dequantized().scalars == conv.parameters.matrix.dequantized().scalars)
    #expect(
      conv.base(.images(x), convCopy).scalars == conv.base(.images(x), conv.parameters).scalars)
    let linear = try builder.conv1D("e", 7, 5)
    let copy = linear.parameters.trainableCopy()
    #expect(copy.info.map(\.shape) == [[7, 5], [5]])
    let (a, b) = (linear.base(.features(x), copy), linear.base(.features(x), linear.parameters))
    #expect(zip(a.scalars, b.scalars).allSatisfy { abs($0 - $1) < 1e-5 })
    guard case .parameter(let weight) = copy.weight else {
      Issue.record("a copy is a parameter")
      return
    }
    let check = GradientCheck([weight]) { linear.base(.features(x), copy) }
    #expect(check.maximumError < 5e-3)
  }

  @Test func wrongShapesAreRefused() throws {
    for (settings, text) in [
      (ConvolutionSettings(4, 6, kernel: []), "0 dimensions"),
      (ConvolutionSettings(4, 6, kernel: [0]), "the kernel [0]"),
      (ConvolutionSettings(4, 6, kernel: [3], stride: [0]), "the stride [0]"),
      (ConvolutionSettings(4, 6, kernel: [3], dilation: [1, 1]), "the dilation [1, 1]"),
      (ConvolutionSettings(4, 6, kernel: [3], padding: .symmetric([-1])), "the padding [-1]"),
      (
        ConvolutionSettings(4, 6, kernel: [3], stride: [2], padding: .same),
        "padding 'same' and stride [2]"
      ),
      (ConvolutionSettings(4, 6, kernel: [3], groups: 3), "4 and 6 channels in 3 groups"),
    ] {
      let error = #expect(throws: PEFTError.self) {
        try builder.convolution("c", settings, bias: true)
      }
      #expect(error?.message.hasPrefix("a convolution with \(text)") == true)
      #expect(error?.location == "c")
    }
    let settings = ConvolutionSettings(
      4, 6, kernel: [3, 3], padding: .symmetric([2, 2]), paddingMode: .reflect)
    try settings.checkInput([1, 4, 3, 3])
    for shape in [[1, 4, 3], [1, 3, 3, 3], [1, 4, 2, 3]] {
      let error = #expect(throws: PEFTError.self) { try settings.checkInput(shape) }
      #expect(error?.message.hasPrefix("an input of shape \(shape)") == true)
    }
    #expect(throws: PEFTError.self) {
      try ConvolutionSettings(4, 6, kernel: [3]).checkInput([1, 4, 2])
    }
    let error = #expect(throws: PEFTError.self) {
      try builder.multiheadAttention("f", 5, heads: 2)
    }
    #expect(error?.message == "attention of width 5 with 2 heads" && error?.location == "f")
  }

  /// Self-attention is attention to itself, in either layout, causal or not.
  @Test(arguments: [true, false])
  func selfAttentionIsAttentionToItself(_ batchFirst: Bool) throws {
    let layer = try builder.multiheadAttention("f", 4, heads: 2, batchFirst: batchFirst)
    let shape = batchFirst ? [2, 3, 4] : [3, 2, 4]
    let x = Tensor.normal(shape, deviation: 1, key: DropoutKey(seed: 1, stream: 1))
    for masks in [
      MultiheadAttention.Masks(), .init(keys: [1, 1, 0, 1, 1, 1]), .init(isCausal: true),
    ] {
      let own = layer(x, masks, context)
      #expect(own.shape == shape)
      #expect(own.scalars == layer(x, key: x, value: x, masks, context).scalars)
    }
    // A bias of −∞ above the diagonal is causality.
    let bias = Tensor(
      shape: [3, 3], scalars: (0..<9).map { $0 % 3 > $0 / 3 ? -Float.infinity : 0 })
    let (a, b) = (
      layer(x, .init(isCausal: true), context).scalars, layer(x, .init(bias: bias), context).scalars
    )
    #expect(zip(a, b).allSatisfy { abs($0 - $1) < 1e-5 })
  }
}
