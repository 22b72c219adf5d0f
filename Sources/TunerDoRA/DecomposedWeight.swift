import NN
import PEFTCore
import PEFTSupport
import Tensors
import TunerLoRA

/// The magnitude and the direction of one weight-decomposed adapter on one host: knows the column
/// scale g = m/‖W + s·P·A‖ and what it is made of, and computes each part again only after what it
/// depends on has changed.
///
/// P is B for DoRA and B·R for EDoRA.
package final class DecomposedWeight {
  /// The low-rank part of a direction.
  package struct LowRank {
    /// A and what P is made of; their versions tell when a product is out of date.
    let a: Parameter
    let outer: [Parameter]
    /// A, `[rank, inputs]`, and P, `[outputs, rank]`, tracked where their parameters are.
    let aMatrix: () -> Tensor
    let outerMatrix: () -> Tensor
    /// s, which can be changed at any time.
    let scaling: () -> Float

    /// Describes a low-rank change.
    ///
    /// - Parameters:
    ///   - a: A.
    ///   - outer: The parameters of P.
    ///   - scaling: The present s.
    ///   - aMatrix: A as `[rank, inputs]`; of all inputs where the host has groups.
    ///   - outerMatrix: P as `[outputs, rank]`, zero where groups do not meet.
    package init(
      a: Parameter, outer: [Parameter], scaling: @escaping () -> Float,
      aMatrix: @escaping () -> Tensor, outerMatrix: @escaping () -> Tensor
    ) {
      self.a = a
      self.outer = outer
      self.scaling = scaling
      self.aMatrix = aMatrix
      self.outerMatrix = outerMatrix
    }
  }

  /// m, one number for each output feature.
  package let magnitude: Parameter
  /// s·P·A.
  private let change: LowRank
  /// Which axis of the host's matrix is the output.
  private let axis: OutputAxis
  /// Runs of outputs that see only their own inputs.
  private let groups: Int
  /// Whether training takes the norm as a constant, as section 4.3 of the paper does.
  private let detachesNorm: Bool

  private var products: (of: ProductVersion, value: LowRankNorms)?
  private var scale: (of: ScaleVersion, value: ColumnScale)?
  private var expanded: (of: WeightIdentity, value: DenseMatrix)?
  /// The factors for merging, which goes through the rows in blocks, and the row that comes next.
  private var merging: (factors: Tensor, rows: Int, next: Int)?

  private struct ProductVersion: Equatable {
    /// Kept alive, so that no other weight gets its address.
    let weight: WeightIdentity
    let weightVersion: Int
    let a: Int

    static func == (one: Self, other: Self) -> Bool {
      one.weight === other.weight && one.weightVersion == other.weightVersion && one.a == other.a
    }
  }

  private struct ScaleVersion: Equatable {
    let products: ProductVersion
    let outer: [Int]
    let scaling: Float
    let magnitude: Int
  }

  /// Describes a direction.
  ///
  /// - Parameters:
  ///   - magnitude: m.
  ///   - change: s·P·A.
  ///   - host: The layer.
  ///   - detachesNorm: Whether training takes the norm as a constant.
  package init(
    magnitude: Parameter, change: LowRank, host: any AdapterHost, detachesNorm: Bool
  ) {
    self.magnitude = magnitude
    self.change = change
    self.detachesNorm = detachesNorm
    axis = host is Embedding ? .columns : .rows
    groups = host.groups
  }

  // MARK: Scale

  /// Whether W·Aᵀ is at hand for the present A and weight.
  private func hasProducts(_ parameters: HostParameters) -> Bool {
    products?.of == version(parameters)
  }

  /// Takes A·Wᵀ, `[rank, outputs]`.
  private func setProducts(crossTransposed: Tensor, _ parameters: HostParameters) {
    products = (
      version(parameters),
      LowRankNorms(
        squared: parameters.squaredNorms(axis), crossTransposed: crossTransposed,
        a: change.aMatrix().detached)
    )
  }

  /// g for the present parameters; tracked where the magnitude is.
  package func columnScale(_ parameters: HostParameters) -> ColumnScale {
    if !hasProducts(parameters) {
      setProducts(
        crossTransposed: wholeMatrix(parameters).multiply(change.aMatrix().detached), parameters)
    }
    let products = products!
    let scaling = change.scaling()
    let wanted = ScaleVersion(
      products: products.of, outer: change.outer.map(\.version), scaling: scaling,
      magnitude: magnitude.version)
    if scale?.of != wanted {
      let norms = products.value.norms(
        outer: withoutGradients { change.outerMatrix() }, scaling: scaling)
      scale = (wanted, ColumnScale(magnitude: magnitude.value, norms: norms))
    }
    let known = scale!.value
    if detachesNorm || !GradientMode.isRecording { return known.tracking(magnitude.tensor) }
    let matrix = wholeMatrix(parameters)
    let norms = products.value.trackedNorms(
      outer: change.outerMatrix(), a: change.aMatrix(), scaling: scaling
    ) { x, beta, destination in
      matrix.multiplyTransposed(x, count: x.count / matrix.rows, beta: beta, into: destination)
    }
    return known.tracking(magnitude.tensor, norms: norms)
  }

  /// ‖W + s·P·A‖ for the present values, which a new magnitude begins with.
  package func currentNorms(_ parameters: HostParameters) -> Tensor {
    columnScale(parameters).norms.detached
  }

  private func version(_ parameters: HostParameters) -> ProductVersion {
    var weightVersion = 0
    if case .parameter(let parameter) = parameters.weight { weightVersion = parameter.version }
    return ProductVersion(
      weight: parameters.identity, weightVersion: weightVersion, a: change.a.version)
  }

  /// The weight with one row for each output over all inputs, zero where groups do not meet.
  private func wholeMatrix(_ parameters: HostParameters) -> any WeightMatrix {
    guard groups > 1 else { return parameters.matrix(axis) }
    if let expanded, expanded.of === parameters.identity, case .matrix = parameters.weight {
      return expanded.value
    }
    let whole = DenseMatrix(parameters.matrix.dequantized().spread(overGroups: groups))
    expanded = (parameters.identity, whole)
    return whole
  }

  // MARK: Products

  /// The output of a linear layer in one product with the frozen weight, which A·Wᵀ shares when the norm
  /// has to be computed anew; `nil` for other layers, and where the change sees another input.
  ///
  /// - Parameters:
  ///   - call: The call.
  ///   - isDropped: Whether the change sees another input than the base.
  ///   - b: The last factor of the change.
  ///   - low: What the change's other factors make of an input.
  package func output(
    _ call: LayerCall, isDropped: Bool, b: Parameter, low: (Tensor) -> Tensor
  ) -> Tensor? {
    guard !isDropped, case .features(let x) = call.input,
      case .matrix(let matrix) = call.parameters.weight
    else { return nil }
    let product = product(of: x, matrix, call.parameters)
    return decomposedLinear(
      x, product: product, weight: matrix, bias: call.parameters.bias?.tensor, low: low(x),
      b: b.tensor, scaling: change.scaling(), scale: columnScale(call.parameters))
  }

  /// x·Wᵀ of a linear layer without a graph, and A·Wᵀ in the same pass over the weight when that is
  /// wanted.
  private func product(
    of x: Tensor, _ matrix: any WeightMatrix, _ parameters: HostParameters
  ) -> Tensor {
    if hasProducts(parameters) { return matrix.multiply(x.detached) }
    let (product, cross) = matrix.multiply(x.detached, and: change.aMatrix().detached)
    setProducts(crossTransposed: cross, parameters)
    return product
  }

  /// The host's output without its bias, with gradients.
  ///
  /// - Parameters:
  ///   - call: The call.
  ///   - input: Its input, after dropout.
  ///   - isDropped: Whether that is another one than the base's.
  private func unbiasedOutput(_ call: LayerCall, of input: HostInput, isDropped: Bool) -> Tensor {
    var parameters = call.parameters
    if !isDropped, var base = call.base {
      if let bias = parameters.bias { base.addToRows(bias.tensor, scale: -1) }
      return base
    }
    if case .features(let x) = input, case .matrix(let matrix) = parameters.weight {
      return linear(x, matrix, product: product(of: x, matrix, parameters))
    }
    parameters.bias = nil
    return call.host.base(input, parameters)
  }

  /// Adds g∘(z + s·change) − z to a layer's output.
  ///
  /// - Parameters:
  ///   - call: The call.
  ///   - input: Its input, after dropout.
  ///   - isDropped: Whether that is another one than the base's.
  ///   - sum: The output.
  ///   - addChange: Adds s·P·A applied to the input.
  package func contribute(
    _ call: LayerCall, of input: HostInput, isDropped: Bool, to sum: inout Tensor,
    addChange: (inout Tensor) -> Void
  ) {
    let base = unbiasedOutput(call, of: input, isDropped: isDropped)
    var direction = base
    addChange(&direction)
    sum.addRescaled(direction, by: columnScale(call.parameters), minus: base)
  }

  // MARK: Merging

  /// Adds rows of g∘(W + s·P·A) − W to a block; see ``TunerLayer/addDelta(rows:to:base:)``.
  ///
  /// - Parameters:
  ///   - rows: Rows of the stored matrix.
  ///   - block: `[rows.count, columns]`.
  ///   - base: The untouched weight.
  /// - Throws: ``PEFTError`` when the host is a convolution with groups, which has no such weight.
  package func addDelta(
    rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix
  ) throws(PEFTError) {
    guard groups == 1 else { throw PEFTError.mergesGroups }
    let factors = mergeFactors(rows, base)
    let (a, outer) = withoutGradients { (change.aMatrix(), change.outerMatrix()) }
    let scaledOuter = outer.scalingRows(by: factors)
    let gains = Tensor(shape: factors.shape, scalars: factors.scalars.map { $0 - 1 })
    let weight = base.dequantized(rows: rows)
    switch axis {
    case .rows:
      let own = gains.reshaped([gains.count, 1]).rowRange(rows).reshaped([rows.count])
      block = block + weight.scalingRows(by: own)
      block.addProduct(scaledOuter.rowRange(rows), a.transposed(), scale: change.scaling())
    case .columns:
      block = block + weight.scalingColumns(by: gains)
      block.addProduct(
        selectColumns(a, rows.map { Int32($0) }), scaledOuter, scale: change.scaling())
    }
  }

  /// g of the whole weight; merging goes through a weight in consecutive blocks, so it is computed
  /// for the first one.
  private func mergeFactors(_ rows: Range<Int>, _ base: any WeightMatrix) -> Tensor {
    if let known = merging, rows.lowerBound > 0, known.rows == base.rows,
      known.next == rows.lowerBound
    {
      merging?.next = rows.upperBound
      return known.factors
    }
    // The base may not be the host's, so nothing of it is taken from the caches.
    let parameters = HostParameters(weight: .matrix(base), bias: nil)
    let (a, outer) = withoutGradients { (change.aMatrix(), change.outerMatrix()) }
    let norms = LowRankNorms(
      squared: parameters.squaredNorms(axis),
      crossTransposed: parameters.matrix(axis).multiply(a), a: a
    ).norms(outer: outer, scaling: change.scaling())
    let factors = ColumnScale(magnitude: magnitude.value, norms: norms).factors
    merging = (factors, base.rows, rows.upperBound)
    return factors
  }
}
