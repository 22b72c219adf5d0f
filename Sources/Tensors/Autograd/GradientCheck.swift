/// The outcome of comparing a gradient with central differences.
public struct GradientCheck: Sendable {
  /// Largest difference between an analytic and a numeric derivative, relative to the largest
  /// numeric derivative of the same parameter.
  public let maximumError: Double
  /// The parameter and element with that difference.
  public let worst: (parameter: Int, element: Int)

  /// Compares the gradients of a scalar function with central differences.
  ///
  /// The function may return any shape; it is contracted with fixed pseudo-random weights in
  /// double precision, so that rounding in the sum does not hide in the differences.
  ///
  /// - Parameters:
  ///   - parameters: What to differentiate by; values are restored afterwards.
  ///   - step: Half the distance of the two evaluations.
  ///   - elements: How many elements of each parameter to check at most, spread evenly.
  ///   - function: Computes the tensor from the parameters' current values.
  public init(
    _ parameters: [Parameter], step: Float = 1e-2, elements: Int = 64,
    _ function: () throws -> Tensor
  ) rethrows {
    let output = try function()
    let weights = (0..<output.count).map { Float(((($0 &* 2_654_435_761) >> 7) & 1023)) / 512 - 1 }
    let weightTensor = Tensor(shape: output.shape, scalars: weights)
    let gradients = output.backward(from: weightTensor, inputs: []).parameters
    func contracted() throws -> Double {
      let values = try withoutGradients { try function().scalars }
      return zip(values, weights).reduce(0) { $0 + Double($1.0) * Double($1.1) }
    }
    var worst = (error: 0.0, parameter: 0, element: 0)
    for (index, parameter) in parameters.enumerated() {
      let original = parameter.value
      let analytic = gradients[parameter]?.scalars ?? .init(repeating: 0, count: original.count)
      let stride = max(1, original.count / elements)
      var pairs: [(element: Int, numeric: Double)] = []
      for element in Swift.stride(from: 0, to: original.count, by: stride) {
        var values = original.scalars
        let center = values[element]
        values[element] = center + step
        let high = values[element]
        parameter.assign(Tensor(shape: original.shape, scalars: values))
        let above = try contracted()
        values[element] = center - step
        let low = values[element]
        parameter.assign(Tensor(shape: original.shape, scalars: values))
        let below = try contracted()
        pairs.append((element, (above - below) / (Double(high) - Double(low))))
      }
      parameter.assign(original)
      let scale = max(pairs.map { abs($0.numeric) }.max() ?? 0, 1e-6)
      for (element, numeric) in pairs {
        let error = abs(numeric - Double(analytic[element])) / scale
        if error > worst.error || error.isNaN { worst = (error, index, element) }
      }
    }
    maximumError = worst.error
    self.worst = (worst.parameter, worst.element)
  }
}
