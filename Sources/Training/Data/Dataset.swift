import Models
import NN
import PEFTSupport
import Tensors

/// One tokenised example.
public struct Example: Sendable, Equatable {
  /// The token ids.
  public var tokenIDs: [Int32]
  /// The segment of each token, for encoders that know segments.
  public var typeIDs: [Int32]?
  /// Which tokens may be attended to; `nil` when all may.
  public var mask: [UInt8]?
  /// The class of the sequence (one number); for language models and classifiers of tokens a label
  /// for each token, not shifted; for answers the places of the first and the last token.
  /// ``Tensors/ignoredLabel`` does not count.
  public var labels: [Int32]
  /// Numbers for the sequence: the targets of a regression, or 0 and 1 for each of several labels.
  public var targets: [Float]
  /// Where an evaluation looks for the answer to a question; `nil` is everywhere, and the labels are
  /// the answer.
  public var search: AnswerSearch?

  /// Creates an example.
  public init(
    tokenIDs: [Int32], typeIDs: [Int32]? = nil, mask: [UInt8]? = nil, labels: [Int32],
    targets: [Float] = [], search: AnswerSearch? = nil
  ) {
    self.tokenIDs = tokenIDs
    self.typeIDs = typeIDs
    self.mask = mask
    self.labels = labels
    self.targets = targets
    self.search = search
  }
}

/// Tokenised examples, made once and read in any order.
public struct Dataset: Sendable {
  /// The examples.
  public let examples: [Example]
  /// How many records or files were shortened to the length limit.
  public var truncatedCount = 0

  /// Creates a data set.
  public init(_ examples: [Example], truncatedCount: Int = 0) {
    self.examples = examples
    self.truncatedCount = truncatedCount
  }

  /// Number of examples.
  public var count: Int { examples.count }
  /// Number of tokens.
  public var tokenCount: Int { examples.reduce(0) { $0 + $1.tokenIDs.count } }

  /// A number that changes with any token, segment, mask or label, and with the order (64-bit
  /// FNV-1a): resuming compares it.
  public var fingerprint: UInt64 {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    func mix(_ value: Int32) {
      hash = (hash ^ UInt64(UInt32(bitPattern: value))) &* 0x100_0000_01b3
    }
    for example in examples {
      mix(Int32(truncatingIfNeeded: example.tokenIDs.count))
      for id in example.tokenIDs { mix(id) }
      for id in example.typeIDs ?? [] where id != 0 { mix(id &+ 1) }
      for flag in example.mask ?? [] where flag == 0 { mix(-2) }
      for label in example.labels { mix(label) }
      for target in example.targets { mix(Int32(bitPattern: target.bitPattern)) }
    }
    return hash
  }
}

/// Examples packed for one forward pass: no padding, one row a token.
public struct Batch: Sendable {
  /// The model's input.
  public let tokens: TokenBatch
  /// The labels of the examples, one after the other.
  public let labels: [Int32]
  /// The numbers of the examples, one after the other.
  public let targets: [Float]
  /// Where evaluations look for each example's answer.
  public let searches: [AnswerSearch?]

  /// Packs examples.
  public init(_ examples: some Collection<Example>) {
    var offsets: [Int32] = [0]
    var positions: [Int32] = []
    var ids: [Int32] = []
    var types: [Int32]? = examples.contains { $0.typeIDs != nil } ? [] : nil
    var mask: [UInt8]? = examples.contains { $0.mask != nil } ? [] : nil
    var labels: [Int32] = []
    for example in examples {
      let count = example.tokenIDs.count
      ids += example.tokenIDs
      positions += 0..<Int32(count)
      types?.append(contentsOf: example.typeIDs ?? Array(repeating: 0, count: count))
      mask?.append(contentsOf: example.mask ?? Array(repeating: 1, count: count))
      labels += example.labels
      offsets.append(Int32(ids.count))
    }
    tokens = TokenBatch(
      tokenIDs: ids, tokenTypeIDs: types,
      layout: SequenceLayout(offsets: offsets, positions: positions, keyMask: mask))
    self.labels = labels
    targets = examples.flatMap(\.targets)
    searches = examples.map(\.search)
  }
}

/// The order in which examples are visited: a permutation for each epoch, given by a seed.
public enum DataOrder {
  /// The order of an epoch.
  ///
  /// - Parameters:
  ///   - count: Number of examples.
  ///   - seed: Seed of the run.
  ///   - epoch: The epoch, from 0.
  ///   - shuffles: `false` gives file order.
  public static func permutation(
    _ count: Int, seed: UInt64, epoch: Int, shuffles: Bool = true
  ) -> [Int] {
    var order = Array(0..<count)
    guard shuffles else { return order }
    var generator = SplitMix64(state: mix(seed, UInt64(epoch)))
    // Fisher-Yates, written out: the standard library's shuffle may change between versions, and
    // a resumed run must find the same order.
    for place in stride(from: count - 1, to: 0, by: -1) {
      let other = Int(generator.next().multipliedFullWidth(by: UInt64(place + 1)).high)
      order.swapAt(place, other)
    }
    return order
  }
}

/// Combines a seed and a counter to a seed that shares nothing with its neighbours'.
func mix(_ seed: UInt64, _ counter: UInt64) -> UInt64 {
  var generator = SplitMix64(state: seed)
  let first = generator.next()
  generator = SplitMix64(state: first ^ (counter &* 0xd1b5_4a32_d192_ed03))
  return generator.next()
}

/// The generator of Steele, Lea and Flood (SplitMix, OOPSLA 2014) with its published constants.
struct SplitMix64: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}
