import PEFTSupport
import Tensors

/// Where a model's initial parameters come from: files, or a seeded generator.
public protocol ParameterSource: AnyObject {
  /// A matrix `[rows, columns]` for a linear layer or an embedding.
  func matrix(_ name: String, rows: Int, columns: Int) throws(PEFTError) -> any WeightMatrix
  /// A tensor of any shape as a matrix, all dimensions but the first taken as one: the kernel of a
  /// convolution.
  func matrix(_ name: String, shape: [Int]) throws(PEFTError) -> any WeightMatrix
  /// A vector: a bias (initially 0) or the weight of a norm (initially 1).
  func vector(_ name: String, count: Int, initial: Float) throws(PEFTError) -> Tensor
  /// Whether there is anything under the name.
  func contains(_ name: String) -> Bool
}

extension ParameterSource {
  /// A tensor of any shape as a matrix, for sources that do not look at the shape.
  public func matrix(_ name: String, shape: [Int]) throws(PEFTError) -> any WeightMatrix {
    try matrix(name, rows: shape[0], columns: shape.dropFirst().reduce(1, *))
  }
}

/// Parameters from a Hugging Face folder.
public final class CheckpointSource: ParameterSource {
  private let weights: ModelWeights
  private let precision: WeightPrecision
  private let basePrefix: String
  private let storedPrefixes: [String]
  private let fallback: RandomSource?
  private let randomNames: Set<String>
  private let headNames: Set<String>
  private let replacesHead: Bool
  private var used: Set<String> = []
  /// Names that were not in the files and were drawn at random instead.
  public private(set) var initialized: [String] = []

  /// Creates a source.
  ///
  /// - Parameters:
  ///   - weights: The files.
  ///   - precision: What matrices are kept in.
  ///   - basePrefix: The attribute under which a model with a head holds its base ("bert",
  ///     "model"): names are found with and without it, as transformers finds them.
  ///   - storedPrefixes: Other attributes under which files may have the base.
  ///   - randomPrefixes: Modules that a checkpoint may lack.
  ///   - headPrefixes: Heads, which a checkpoint may lack too.
  ///   - replacesHead: Whether a head of another shape counts as lacking.
  ///   - fallback: What makes those.
  public init(
    _ weights: ModelWeights, precision: WeightPrecision, basePrefix: String,
    storedPrefixes: [String] = [], randomPrefixes: Set<String> = [],
    headPrefixes: Set<String> = [], replacesHead: Bool = false, fallback: RandomSource? = nil
  ) {
    self.weights = weights
    self.precision = precision
    self.basePrefix = basePrefix
    self.fallback = fallback
    self.storedPrefixes = storedPrefixes.filter { $0 != basePrefix }
    randomNames = randomPrefixes.union(headPrefixes)
    headNames = headPrefixes
    self.replacesHead = replacesHead
  }

  /// Whether there is anything under the name.
  public func contains(_ name: String) -> Bool { resolve(name) != nil }

  /// A matrix `[rows, columns]`.
  public func matrix(
    _ name: String, rows: Int, columns: Int
  ) throws(PEFTError) -> any WeightMatrix {
    try matrix(name, shape: [rows, columns])
  }

  /// A tensor of any shape as a matrix, all dimensions but the first taken as one.
  public func matrix(_ name: String, shape: [Int]) throws(PEFTError) -> any WeightMatrix {
    guard let stored = resolve(name, shape: shape) else {
      return try missing(name) { (source) throws(PEFTError) in
        try source.matrix(name, shape: shape)
      }
    }
    let file = try open(stored, shape: shape)
    switch precision {
    case .float32:
      let values = try file.tensor(stored)
      return DenseMatrix(
        Tensor(shape: [shape[0], values.count / max(shape[0], 1)], slice: values.slice))
    case .bfloat16:
      let matrix = try file.matrix(stored, precision: .bfloat16Inputs)
      if matrix.format == "bfloat16" { return matrix }
      return HalfMatrix(
        rounding: matrix.dequantized(), to: .bfloat16, precision: .bfloat16Inputs)
    }
  }

  /// A vector of `count` elements.
  public func vector(_ name: String, count: Int, initial: Float) throws(PEFTError) -> Tensor {
    guard let stored = resolve(name, shape: [count]) else {
      return try missing(name) { (source) throws(PEFTError) in
        try source.vector(name, count: count, initial: initial)
      }
    }
    return try open(stored, shape: [count]).tensor(stored)
  }

  /// Tensors in the files that no module asked for.
  public var unused: [String] { weights.names.filter { !used.contains($0) } }

  private func resolve(_ name: String) -> String? {
    find(name) ?? LegacyNames.old(name).flatMap(find)
  }

  /// The name as it is, or with another prefix.
  private func find(_ name: String) -> String? {
    if weights[name] != nil { return name }
    let prefix = basePrefix + "."
    let others = storedPrefixes.map { $0 + "." }
    let candidates: [String]
    if name.hasPrefix(prefix) {
      let short = String(name.dropFirst(prefix.count))
      candidates = [short] + others.map { $0 + short }
    } else {
      candidates = ([prefix] + others).map { $0 + name }
    }
    return candidates.first { weights[$0] != nil }
  }

  /// The stored name; none for a head of another shape that is to be replaced.
  private func resolve(_ name: String, shape: [Int]) -> String? {
    guard let stored = resolve(name) else { return nil }
    let isOther = replacesHead && weights[stored]?.shape != shape && Self.covers(headNames, name)
    return isOther ? nil : stored
  }

  private static func covers(_ prefixes: Set<String>, _ name: String) -> Bool {
    prefixes.contains { name == $0 || name.hasPrefix($0 + ".") }
  }

  private func open(_ stored: String, shape: [Int]) throws(PEFTError) -> any TensorFile {
    let file = weights.file(of: stored)!
    let entry = try file.entry(stored)
    guard entry.shape == shape else {
      throw PEFTError(
        .shapeMismatch,
        "the tensor '\(stored)' has shape \(entry.shape), config.json asks for \(shape)",
        at: file.path, remedy: "The weights and config.json belong to different models.")
    }
    used.insert(stored)
    return file
  }

  private func missing<Value>(
    _ name: String, _ make: (RandomSource) throws(PEFTError) -> Value
  ) throws(PEFTError) -> Value {
    if let fallback, Self.covers(randomNames, name) {
      initialized.append(name)
      return try make(fallback)
    }
    throw PEFTError(
      .missingTensor, "the tensor '\(name)' is missing", at: weights.folder,
      remedy: "The weights and config.json belong to different models, or a shard is missing.")
  }
}

/// Names that tensors have in old files.
package enum LegacyNames {
  private static let ends = [
    // TensorFlow's, which the first BERT files have; transformers renames them too.
    (new: "LayerNorm.weight", old: "LayerNorm.gamma"),
    (new: "LayerNorm.bias", old: "LayerNorm.beta"),
  ]

  /// The old name of a tensor, if it has one.
  package static func old(_ name: String) -> String? {
    ends.first { name.hasSuffix($0.new) }.map { name.dropLast($0.new.count) + $0.old }
  }
}

/// What the matrices of a model are kept and multiplied in.
public enum WeightPrecision: String, Sendable, CaseIterable {
  /// 32-bit floats, exact mode.
  case float32
  /// bf16, with bf16 products where the CPU has them.
  case bfloat16
}

/// Seeded random parameters: normal matrices, as transformers initialises a new model.
public final class RandomSource: ParameterSource {
  private let seed: UInt64
  private let deviation: Float
  private let precision: WeightPrecision

  /// Creates a source; `deviation` is config.json's `initializer_range`.
  public init(seed: UInt64, deviation: Float, precision: WeightPrecision) {
    self.seed = seed
    self.deviation = deviation
    self.precision = precision
  }

  /// Whether there is anything under the name.
  public func contains(_ name: String) -> Bool { true }

  /// A matrix `[rows, columns]`.
  public func matrix(
    _ name: String, rows: Int, columns: Int
  ) throws(PEFTError) -> any WeightMatrix {
    let values = Tensor.normal(
      [rows, columns], deviation: deviation, key: DropoutKey(seed: seed, stream: siteID(name)))
    switch precision {
    case .float32: return DenseMatrix(values)
    case .bfloat16:
      return HalfMatrix(rounding: values, to: .bfloat16, precision: .bfloat16Inputs)
    }
  }

  /// A vector of `count` elements.
  public func vector(_ name: String, count: Int, initial: Float) throws(PEFTError) -> Tensor {
    Tensor(repeating: initial, shape: [count])
  }
}
