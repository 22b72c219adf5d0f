import NN
import PEFTSupport
import Tensors

/// Single rows of embeddings that an adapter trains, the key `trainable_token_indices`.
public enum TrainableTokens: Sendable, Equatable {
  /// Rows of the input embedding.
  case inputEmbedding([Int])
  /// Rows of modules, by name.
  case modules([Entry])

  /// Rows of one module.
  public struct Entry: Sendable, Equatable {
    /// The module's name or the end of it.
    public var module: String
    /// The rows.
    public var indices: [Int]

    /// Creates an entry.
    public init(_ module: String, _ indices: [Int]) {
      self.module = module
      self.indices = indices
    }
  }

  /// Reads the value of the key: a list of integers, or a mapping from names to such lists.
  ///
  /// - Throws: ``PEFTError`` `invalidConfiguration` naming the key.
  public init?(_ value: JSONValue?, key: String = "trainable_token_indices") throws(PEFTError) {
    guard let value else { return nil }
    func indices(_ key: String, _ value: JSONValue) throws(PEFTError) -> [Int] {
      let found = value.array?.compactMap(\.int)
      guard let found, found.count == value.array?.count else {
        throw ConfigReader.mismatch(key, "a list of integers", value)
      }
      return found
    }
    if let object = value.object {
      var entries: [Entry] = []
      for (name, list) in object.members {
        entries.append(Entry(name, try indices("\(key).\(name)", list)))
      }
      self = .modules(entries)
    } else {
      self = .inputEmbedding(try indices(key, value))
    }
  }

  /// The value for a config file.
  public var json: JSONValue {
    func list(_ indices: [Int]) -> JSONValue { .array(indices.map { .int($0) }) }
    switch self {
    case .inputEmbedding(let indices): return list(indices)
    case .modules(let entries):
      return .object(JSONObject(entries.map { ($0.module, list($0.indices)) }))
    }
  }
}

/// The trained rows of one adapter on one host: they take the place of the base's rows.
///
/// On an embedding a row is a token's vector; on an output head it gives a token's logit. A tied
/// head uses the rows of its embedding, and then does not save them a second time.
final class TokenRows {
  /// Which rows, in the order of ``rows``.
  let indices: [Int32]
  /// The rows, `[indices.count, width]`.
  let rows: Parameter
  /// Whether they are another host's.
  let isShared: Bool
  private let places: [Int32: Int32]

  /// Takes rows of a base weight as initial values; zeros where it has none.
  init(_ indices: [Int], of base: any WeightMatrix) {
    self.indices = indices.map { Int32($0) }
    rows = Parameter(
      base.hasValues
        ? withoutGradients { gather(base, rows: indices.map { Int32($0) }) }
        : .zeros([indices.count, base.columns]))
    isShared = false
    places = Self.places(self.indices)
  }

  /// Uses the rows of a host that this one is tied to.
  init(sharing other: TokenRows) {
    indices = other.indices
    rows = other.rows
    isShared = true
    places = other.places
  }

  private static func places(_ indices: [Int32]) -> [Int32: Int32] {
    Dictionary(
      indices.enumerated().map { ($0.element, Int32($0.offset)) }, uniquingKeysWith: { $1 })
  }

  /// Puts the rows into the base's output, multiplied as the host multiplies its own.
  func replace(
    in output: inout Tensor, _ input: HostInput, bias: Parameter?, host: any AdapterHost
  ) {
    switch input {
    case .tokenIDs(let ids):
      var (positions, slots): ([Int32], [Int32]) = ([], [])
      for (position, id) in ids.enumerated() {
        guard let slot = places[id] else { continue }
        positions.append(Int32(position))
        slots.append(slot)
      }
      if positions.isEmpty {
        // Rows that the batch does not use have a gradient of zero, not none: an optimiser with
        // momentum or decay changes them nevertheless, as with peft.
        let shape = rows.shape
        output = output.recorded(from: [output, rows.tensor]) { gradient, sink in
          if sink.needs(1) { sink.add(Tensor.zeros(shape), to: 1) }
          sink.add(gradient, to: 0)
        }
        return
      }
      let found = gather(rows.tensor, rows: slots)
      output.replaceRows(positions, with: (host as? Embedding)?.scaled(found) ?? found)
    case .features(let x):
      var columns = linear(x, rows.tensor)
      if let bias {
        let own = gather(bias.tensor.reshaped([bias.value.count, 1]), rows: indices)
        columns.addProduct(Tensor(repeating: 1, shape: [x.rows, 1]), own)
      }
      output.replaceColumns(indices, with: columns)
    default:
      preconditionFailure("tokens are trained on embeddings and output heads")
    }
  }

  /// Puts the rows into a block of the weight's rows.
  func replace(in block: inout Tensor, rows range: Range<Int>) {
    for (slot, index) in indices.enumerated() where range.contains(Int(index)) {
      block.copyRows(of: rows.value.rowRange(slot..<slot + 1), at: Int(index) - range.lowerBound)
    }
  }
}
