import NN
import PEFTCore
import Tensors

/// The magnitude and the direction of one weight-decomposed adapter on one host: knows the column
/// scale g = m/‖W + s·P·A‖ and what it is made of, and computes each part again only after what it
/// depends on has changed.
///
/// P is B for DoRA and B·R for EDoRA.
package final class DecomposedWeight {
  /// m, one number for each output feature.
  package let magnitude: Parameter
  /// A as `[rank, inputs]`.
  package let a: Parameter
  /// The parameters of P, whose versions count.
  private let outerFactors: [Parameter]
  private let outerValue: () -> Tensor
  /// s.
  package let scaling: Float
  /// Which axis of the host's matrix is the output.
  package let axis: OutputAxis
  /// Whether training takes the norm as a constant, as section 4.3 of the paper does.
  package let detachesNorm: Bool

  private var products: (of: ProductVersion, value: LowRankNorms)?
  private var scale: (of: ScaleVersion, value: ColumnScale)?
  /// The factors for merging, which goes through the rows in blocks, and the row that comes next.
  private var merging: (factors: Tensor, rows: Int, next: Int)?

  private struct ProductVersion: Equatable {
    let weight: ObjectIdentifier
    let weightVersion: Int
    let a: Int
  }

  private struct ScaleVersion: Equatable {
    let products: ProductVersion
    let outer: [Int]
    let magnitude: Int
  }

  /// Keeps the identity alive whose address is compared.
  private var identity: WeightIdentity?

  /// Describes a direction.
  ///
  /// - Parameters:
  ///   - magnitude: m.
  ///   - a: A.
  ///   - outer: The parameters of P.
  ///   - scaling: s.
  ///   - axis: Which axis of the host's matrix is the output.
  ///   - detachesNorm: Whether training takes the norm as a constant.
  ///   - outerTensor: P, `[outputs, rank]`, tracked where its parameters are.
  package init(
    magnitude: Parameter, a: Parameter, outer: [Parameter], scaling: Float, axis: OutputAxis,
    detachesNorm: Bool, outerTensor: @escaping () -> Tensor
  ) {
    self.magnitude = magnitude
    self.a = a
    outerFactors = outer
    outerValue = outerTensor
    self.scaling = scaling
    self.axis = axis
    self.detachesNorm = detachesNorm
  }

  /// Whether W·Aᵀ is at hand for the present A and weight.
  package func hasProducts(_ parameters: HostParameters) -> Bool {
    products?.of == version(parameters)
  }

  /// Takes A·Wᵀ, `[rank, outputs]`, that someone computed along with another product.
  package func setProducts(crossTransposed: Tensor, _ parameters: HostParameters) {
    identity = parameters.identity
    products = (
      version(parameters),
      LowRankNorms(
        squared: parameters.squaredNorms(axis), crossTransposed: crossTransposed, a: a.value)
    )
  }

  /// g for the present parameters; tracked where the magnitude is.
  package func columnScale(_ parameters: HostParameters) -> ColumnScale {
    if !hasProducts(parameters) {
      setProducts(
        crossTransposed: Self.cross(a.value, parameters.matrix, axis), parameters)
    }
    let products = products!
    let wanted = ScaleVersion(
      products: products.of, outer: outerFactors.map(\.version), magnitude: magnitude.version)
    if scale?.of != wanted {
      let norms = products.value.norms(
        outer: withoutGradients { outerValue() }, scaling: scaling)
      scale = (wanted, ColumnScale(magnitude: magnitude.value, norms: norms))
    }
    let known = scale!.value
    if detachesNorm || !GradientMode.isRecording { return known.tracking(magnitude.tensor) }
    let (matrix, axis) = (parameters.matrix, axis)
    let norms = products.value.trackedNorms(
      outer: outerValue(), a: a.tensor.reshaped([a.value.rows, a.value.columns]), scaling: scaling
    ) { x, beta, destination in
      let count = x.count / (axis == .rows ? matrix.rows : matrix.columns)
      switch axis {
      case .rows: matrix.multiplyTransposed(x, count: count, beta: beta, into: destination)
      case .columns: matrix.multiply(x, count: count, beta: beta, into: destination)
      }
    }
    return known.tracking(magnitude.tensor, norms: norms)
  }

  /// ‖W + s·P·A‖ for the present values, which a new magnitude begins with.
  package func currentNorms(_ parameters: HostParameters) -> Tensor {
    columnScale(parameters).norms.detached
  }

  /// Adds rows of g∘(W + s·P·A) − W to a block; see ``TunerLayer/addDelta(rows:to:base:)``.
  ///
  /// - Parameters:
  ///   - rows: Rows of the stored matrix.
  ///   - block: `[rows.count, columns]`.
  ///   - base: The untouched weight.
  package func addDelta(rows: Range<Int>, to block: inout Tensor, base: any WeightMatrix) {
    let factors = mergeFactors(rows, base)
    let outer = withoutGradients { outerValue() }.scalingRows(by: factors)
    let gains = Tensor(shape: factors.shape, scalars: factors.scalars.map { $0 - 1 })
    let weight = base.dequantized(rows: rows)
    switch axis {
    case .rows:
      let own = gains.reshaped([gains.count, 1]).rowRange(rows).reshaped([rows.count])
      block = block + weight.scalingRows(by: own)
      block.addProduct(outer.rowRange(rows), a.value.transposed(), scale: scaling)
    case .columns:
      block = block + weight.scalingColumns(by: gains)
      block.addProduct(selectColumns(a.value, rows.map { Int32($0) }), outer, scale: scaling)
    }
  }

  /// g of the whole weight; merging goes through a weight in consecutive blocks, so it is computed
  /// for the first one.
  private func mergeFactors(_ rows: Range<Int>, _ base: any WeightMatrix) -> Tensor {
    if let merging, rows.lowerBound > 0, merging.rows == base.rows, merging.next == rows.lowerBound
    {
      self.merging?.next = rows.upperBound
      return merging.factors
    }
    // The base may not be the host's, so nothing of it is taken from the caches.
    let parameters = HostParameters(weight: .matrix(base), bias: nil)
    let norms = LowRankNorms(
      squared: parameters.squaredNorms(axis),
      crossTransposed: Self.cross(a.value, base, axis), a: a.value
    ).norms(outer: withoutGradients { outerValue() }, scaling: scaling)
    let factors = ColumnScale(magnitude: magnitude.value, norms: norms).factors
    merging = (factors, base.rows, rows.upperBound)
    return factors
  }

  private func version(_ parameters: HostParameters) -> ProductVersion {
    var weightVersion = 0
    if case .parameter(let parameter) = parameters.weight { weightVersion = parameter.version }
    return ProductVersion(
      weight: ObjectIdentifier(parameters.identity), weightVersion: weightVersion, a: a.version)
  }

  /// A·Wᵀ, `[rank, outputs]`, where W leads to the outputs of the axis.
  private static func cross(_ a: Tensor, _ matrix: any WeightMatrix, _ axis: OutputAxis) -> Tensor {
    switch axis {
    case .rows: return matrix.multiply(a)
    case .columns:
      return Tensor.filled([a.rows, matrix.columns]) {
        matrix.multiplyTransposed(a.slice, count: a.rows, beta: 0, into: $0)
      }
    }
  }
}

extension DecomposedWeight {
  /// x·Wᵀ without a graph, and A·Wᵀ in the same pass over the weight when that is wanted.
  package func product(
    of x: Tensor, _ matrix: any WeightMatrix, _ parameters: HostParameters
  ) -> Tensor {
    if hasProducts(parameters) { return matrix.multiply(x.detached) }
    let (product, cross) = matrix.multiply(x.detached, and: a.value)
    setProducts(crossTransposed: cross, parameters)
    return product
  }

  /// x·Wᵀ of a linear layer with gradients, as one of several adapters needs it.
  ///
  /// - Parameters:
  ///   - call: The call.
  ///   - x: Its input, after dropout.
  ///   - isDropped: Whether that is another one than the base's.
  package func unbiasedOutput(_ call: LayerCall, of x: Tensor, isDropped: Bool) -> Tensor {
    if isDropped || call.base == nil {
      switch call.parameters.weight {
      case .matrix(let matrix):
        return linear(x, matrix, product: product(of: x, matrix, call.parameters))
      case .parameter(let weight): return linear(x, weight.tensor)
      }
    }
    let base = call.base!
    return call.parameters.bias.map { base.subtractingRow($0.tensor) } ?? base
  }
}
