import PEFTCore
import PEFTSupport
import Tensors

/// m∘(W + s·B·R·A)/‖W + s·B·R·A‖ in double precision, R and m being left out where an adapter has
/// none: what DoRA, EDoRA and LoRA-XS are defined as on a linear layer.
public struct DirectionFormula {
  private let rows: [[Double]]

  /// The weight that a layer has with an adapter.
  ///
  /// - Parameters:
  ///   - weight: W, `[outputs, inputs]`.
  ///   - tensors: The adapter's.
  ///   - scaling: s.
  /// - Throws: ``PEFTError`` when A or B is not among the tensors.
  public init(_ weight: Tensor, _ tensors: [AdapterTensor], scaling: Double) throws {
    func find(_ part: String) -> [[Double]]? {
      tensors.first { $0.key.contains(part) }.map { Self.rows($0.parameter.value) }
    }
    guard var outer = find("lora_B"), let a = find("lora_A") else {
      throw PEFTError(.missingTensor, "the adapter has no A and B")
    }
    if let latent = find("latent") {
      outer = outer.map { row in
        latent[0].indices.map { column in
          row.indices.reduce(0) { $0 + row[$1] * latent[$1][column] }
        }
      }
    }
    let magnitude = find("magnitude")?.flatMap { $0 }
    rows = Self.rows(weight).enumerated().map { place, row in
      let changed = row.indices.map { column in
        row[column]
          + scaling * a.indices.reduce(0) { $0 + outer[place][$1] * a[$1][column] }
      }
      guard let magnitude else { return changed }
      let norm = changed.reduce(0) { $0 + $1 * $1 }.squareRoot()
      return changed.map { $0 * magnitude[place] / norm }
    }
  }

  private static func rows(_ x: Tensor) -> [[Double]] {
    let (values, width) = (x.scalars.map(Double.init), x.columns)
    return stride(from: 0, to: values.count, by: width).map { Array(values[$0..<$0 + width]) }
  }

  /// The weight, `[outputs, inputs]`.
  public var weight: Tensor {
    Tensor(shape: [rows.count, rows[0].count], scalars: rows.flatMap { $0.map { Float($0) } })
  }

  /// x·W′ᵀ + b.
  public func output(_ x: Tensor, bias: Tensor?) -> Tensor {
    let bias = bias?.scalars.map(Double.init)
    let values = Self.rows(x).flatMap { x in
      rows.indices.map { row in
        Float(zip(x, rows[row]).reduce(bias?[row] ?? 0) { $0 + $1.0 * $1.1 })
      }
    }
    return Tensor(shape: x.shape.dropLast() + [rows.count], scalars: values)
  }
}
