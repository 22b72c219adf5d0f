import BLASKernels
import PEFTCore
import PEFTSupport
import Tensors

extension InitialFactors {
  /// Rounding to few bits and a low-rank approximation of what that loses, in turn: Q = round(W − B·A),
  /// then B·A ≈ W − Q.
  ///
  /// peft needs bitsandbytes and a GPU for this, and passes over the adapter's scaling; here A and B are
  /// divided by its root, so that Q + s·B·A is the approximation. With s = 1 all is peft's.
  ///
  /// - Parameters:
  ///   - weight: W, `[out, in]`.
  ///   - settings: Bits and number of turns.
  ///   - rank: r.
  ///   - scaling: s.
  static func loftq(
    _ weight: any WeightMatrix, _ settings: LoftQSettings, _ rank: Int, _ scaling: Double
  ) throws(PEFTError) -> InitialFactors {
    let values = weight.dequantized()
    let quantizer = LoftQQuantizer(bits: settings.bits)
    var rest = values
    var iteration = 1
    while true {
      let rounded = quantizer.rounded(rest)
      let parts = try (values + rounded.scaled(by: -1)).decomposed(rank: rank)
      if iteration == settings.iterations {
        // What peft keeps is of the base's own type.
        let standIn: any WeightMatrix
        do {
          standIn = try weight.merging { rows, block in block = rounded.rowRange(rows) }
        } catch {
          throw PEFTError(
            .unsupported, "a weight in the format '\(weight.format)' cannot take rounded values",
            remedy: "Use another 'init_lora_weights' than \"loftq\".")
        }
        var factors = try split(parts.u, parts.s, parts.vt, scaling)
        factors.standIn = standIn
        return factors
      }
      let product = parts.u.scalingColumns(
        by: Tensor(shape: [parts.s.count], scalars: parts.s)
      ).multiplied(by: parts.vt)
      rest = values + product.scaled(by: -1)
      iteration += 1
    }
  }
}

/// Rounds weights to few bits and back.
struct LoftQQuantizer {
  private let bits: Int
  private static let blockSize = 64

  /// - Parameter bits: 2, 4 or 8.
  init(bits: Int) { self.bits = bits }

  /// Values of the 4-bit normal float (Dettmers et al., arXiv 2305.14314, appendix E).
  private static let normalFloat4: [Float] = [
    -1, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1,
  ]

  /// The same construction with 2 bits: normal quantiles at 0.9677083, its middle with ½ on the
  /// positive side, and zero, over the largest.
  private static let normalFloat2: [Float] = [-1, 0, 0.337_915_24, 1]

  /// The values after rounding, in the same shape.
  func rounded(_ matrix: Tensor) -> Tensor {
    switch bits {
    case 8: return byRows(matrix)
    case 4: return byBlocks(matrix, Self.normalFloat4)
    default: return byBlocks(matrix, Self.normalFloat2)
    }
  }

  /// Integers from -127 to 127 times the largest magnitude of a row over 127, of the values in
  /// float16, as bitsandbytes has them.
  private func byRows(_ values: Tensor) -> Tensor {
    let width = values.columns
    let matrix = HalfMatrix(rounding: values, to: .float16).dequantized()
    return Tensor.filled(matrix.shape) { output in
      matrix.slice.withSpan { source in
        output.withMutableSpan { target in
          for start in stride(from: 0, to: source.count, by: max(width, 1)) {
            var largest: Float = 0
            for i in start..<start + width { largest = max(largest, source[i].magnitude) }
            let factor = largest > 0 ? 127 / largest : 0
            for i in start..<start + width {
              target[i] = (source[i] * factor).rounded(.toNearestOrEven) * largest * (1 / 127)
            }
          }
        }
      }
    }
  }

  /// The nearest of a table's values times the largest magnitude of a block of 64, blocks running over
  /// the whole matrix in the order in which it is stored.
  private func byBlocks(_ matrix: Tensor, _ table: [Float]) -> Tensor {
    let bounds = zip(table, table.dropFirst()).map { ($0 + $1) / 2 }
    return Tensor.filled(matrix.shape) { output in
      matrix.slice.withSpan { source in
        output.withMutableSpan { target in
          for start in stride(from: 0, to: source.count, by: Self.blockSize) {
            let end = min(start + Self.blockSize, source.count)
            var largest: Float = 0
            for i in start..<end { largest = max(largest, source[i].magnitude) }
            let factor = largest > 0 ? 1 / largest : 0
            for i in start..<end {
              let value = source[i] * factor
              var index = 0
              while index < bounds.count, value > bounds[index] { index += 1 }
              target[i] = table[index] * largest
            }
          }
        }
      }
    }
  }
}
