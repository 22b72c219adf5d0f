import NN
import PEFTCore
import PEFTSupport
import Tensors

/// Output scales on one layer.
public final class OutputScaleLayer: TunerLayer {
  /// Where a host's weight has its output features.
  public enum Axis: Sendable {
    /// One row for each, as a linear layer has them.
    case rows
    /// One column for each, as an embedding has them.
    case columns
  }

  private let scales: Parameter
  private let strength: Float
  private let axis: Axis

  /// Creates a layer at a site.
  public init(_ site: AdapterSite, _ config: OutputScaleConfig, axis: Axis) {
    let shape = [site.host.outputFeatures]
    let start =
      config.startsNeutral
      ? Tensor.zeros(shape)
      : Tensor.uniform(
        shape, bound: 0.5, key: DropoutKey(seed: site.seed, stream: siteID(site.path)))
    scales = Parameter(start)
    strength = Float(config.strength)
    self.axis = axis
  }

  /// The scales, under the key of the files.
  public var parameters: [AdapterParameter] { [AdapterParameter("output_scale", scales)] }

  /// The change is relative to what the base computes.
  public var needsBaseOutput: Bool { true }

  /// Adds y ∘ strength·s.
  public func contribute(_ call: LayerCall, to sum: inout Tensor) {
    guard let base = call.base else { preconditionFailure("the base's output was asked for") }
    sum = sum + base.scalingColumns(by: scales.tensor).scaled(by: strength)
  }

  /// Adds the same change of the weight: each output feature's row or column, scaled.
  public func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    let weight = base.dequantized(rows: rows)
    let change: Tensor
    switch axis {
    case .rows:
      let own = scales.value.reshaped([base.rows, 1]).rowRange(rows).reshaped([rows.count])
      change = weight.transposed().scalingColumns(by: own).transposed()
    case .columns:
      change = weight.scalingColumns(by: scales.value)
    }
    block = block + change.scaled(by: strength)
  }

  /// The host with the sizes of its scales.
  public func printed(
    around base: PrintedModule, layers: [(adapter: String, layer: any TunerLayer)]
  ) -> PrintedModule {
    let sizes = layers.map { adapter, layer in
      let count = layer.parameters.first?.parameter.value.count ?? 0
      return (adapter, PrintedModule("Parameter", attributes: "\(count)"))
    }
    return PrintedModule(
      "output_scale.\(base.typeName)",
      children: [
        ("base_layer", base), ("output_scale", PrintedModule("ParameterDict", children: sizes)),
      ])
  }
}
