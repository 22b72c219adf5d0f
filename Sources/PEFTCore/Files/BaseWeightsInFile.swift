import NN
import PEFTSupport
import Tensors

extension PeftModel {
  /// Finds the base's own weights among keys that no adapter tensor has.
  ///
  /// peft saves the embedding, or the output head, with an adapter that targets it by name
  /// (`embed_tokens.base_layer.weight`). Nothing is to be loaded from such a tensor, as the model
  /// has it already; but if it holds other values, the adapter belongs to another base.
  ///
  /// - Parameters:
  ///   - keys: Keys in the form of files.
  ///   - file: What holds them.
  /// - Returns: Those that hold what the model holds.
  /// - Throws: ``PEFTError`` `unexpectedTensor` when the values differ, `shapeMismatch` when the
  ///   sizes do.
  func baseWeights(among keys: [String], in file: any TensorFile) throws(PEFTError) -> [String] {
    guard keys.contains(where: { $0.hasSuffix(".weight") }) else { return [] }
    var found: [String] = []
    for key in keys where key.hasSuffix(".weight") {
      guard let name = FileKey.name(of: key) else { continue }
      var path = String(name.dropLast(".weight".count))
      for wrapper in [".base_layer", ".token_adapter"] where path.hasSuffix(wrapper) {
        path = String(path.dropLast(wrapper.count))
      }
      guard let place = places[path] else { continue }
      guard case .matrix(let matrix) = hosts[place].host.untouched.weight else { continue }
      let shape = try file.entry(key).shape
      guard shape == [matrix.rows, matrix.columns] else {
        throw PEFTError(
          .shapeMismatch,
          "'\(key)' has shape \(shape), the base's weight has [\(matrix.rows), \(matrix.columns)]",
          at: file.path,
          remedy: "The embedding was resized in training: load the adapter on that base.")
      }
      guard Self.isSame(try file.tensor(key), matrix) else {
        throw PEFTError(
          .unexpectedTensor, "'\(key)' holds other values than the base's weight", at: file.path,
          remedy: "The adapter was trained on another base: load it on that one.")
      }
      found.append(key)
    }
    return found
  }

  /// Whether values are those of a matrix, as exactly as its format holds them; a model that is only
  /// described has none to differ from.
  private static func isSame(_ values: Tensor, _ matrix: any WeightMatrix) -> Bool {
    guard matrix.hasValues else { return true }
    let tolerance: Float = matrix.format == "float32" ? 0 : 1.0 / 256
    for rows in matrix.rowBlocks {
      let block = matrix.dequantized(rows: rows)
      let given = values.rowRange(rows)
      let bound = tolerance * given.maximumMagnitude
      let areNear = block.slice.withSpan { a in
        given.slice.withSpan { b in
          for i in a.indices where !(abs(a[i] - b[i]) <= bound) { return false }
          return true
        }
      }
      if !areNear { return false }
    }
    return true
  }
}
