import PEFTSupport

/// How inputs are cut to a maximum length.
public struct Truncation: Sendable, Equatable {
  /// Which text of a pair gives up tokens.
  public enum Strategy: Sendable, Equatable {
    /// The longer one first, then both by turns.
    case longestFirst
    /// Only the first.
    case onlyFirst
    /// Only the second.
    case onlySecond
  }

  /// The end at which tokens, or padding, go.
  public enum Side: Sendable, Equatable { case left, right }

  /// The largest number of tokens, special tokens included.
  public var maxLength: Int
  /// Which text of a pair gives up tokens.
  public var strategy: Strategy
  /// The end at which tokens are removed.
  public var side: Side

  /// Creates a setting.
  ///
  /// - Parameters:
  ///   - maxLength: The largest number of tokens, special tokens included; at least 0.
  ///   - strategy: Which text of a pair gives up tokens.
  ///   - side: The end at which tokens are removed.
  public init(maxLength: Int, strategy: Strategy = .longestFirst, side: Side = .right) {
    precondition(maxLength >= 0, "maxLength must not be negative")
    self.maxLength = maxLength
    self.strategy = strategy
    self.side = side
  }

  init(_ component: Component) throws(PEFTError) {
    maxLength = try component.int("max_length", default: 512)
    side = try component.side()
    let name = try component.string("strategy", default: "LongestFirst")
    switch name {
    case "LongestFirst", "longest_first": strategy = .longestFirst
    case "OnlyFirst", "only_first": strategy = .onlyFirst
    case "OnlySecond", "only_second": strategy = .onlySecond
    default: throw component.unsupportedSetting("strategy", "'\(name)'")
    }
  }
}

/// How inputs are filled up to a common length.
public struct Padding: Sendable, Equatable {
  /// The length that inputs are filled up to.
  public enum Length: Sendable, Equatable {
    /// That of the longest input of the batch; nothing for a single input.
    case longestInBatch
    /// A fixed number of tokens; longer inputs stay as they are.
    case fixed(Int)
  }

  /// The length that inputs are filled up to.
  public var length: Length
  /// The length is rounded up to a multiple of this.
  public var multiple: Int?
  /// The end at which the padding goes.
  public var side: Truncation.Side
  /// The id of the padding token.
  public var tokenID: Int32
  /// The type id of the padding token.
  public var typeID: Int32

  /// Creates a setting.
  public init(
    length: Length = .longestInBatch, multiple: Int? = nil, side: Truncation.Side = .right,
    tokenID: Int32 = 0, typeID: Int32 = 0
  ) {
    self.length = length
    self.multiple = multiple
    self.side = side
    self.tokenID = tokenID
    self.typeID = typeID
  }

  init(_ component: Component) throws(PEFTError) {
    let strategy = component.value("strategy") ?? .string("BatchLongest")
    if let count = strategy["Fixed"]?.int, count >= 0, count <= Self.longest {
      length = .fixed(count)
    } else if strategy.string == "BatchLongest" {
      length = .longestInBatch
    } else {
      throw component.wrong("strategy", strategy, "BatchLongest or a Fixed length")
    }
    side = try component.side()
    let multiple = try component.int("pad_to_multiple_of", default: 0)
    if multiple > Self.longest {
      throw component.wrong("pad_to_multiple_of", .int(multiple), "a smaller count")
    }
    self.multiple = multiple > 0 ? multiple : nil
    tokenID = Int32(clamping: try component.int("pad_id", default: 0))
    typeID = Int32(clamping: try component.int("pad_type_id", default: 0))
  }

  /// No model has longer inputs; a file that asks for more would only exhaust the memory.
  private static let longest = 1 << 24

  /// The length to fill up to, when the longest input of the batch has `longest` tokens.
  func target(longest: Int) -> Int {
    var count = longest
    if case .fixed(let fixed) = length { count = fixed }
    if let multiple, multiple > 0, count % multiple > 0 { count += multiple - count % multiple }
    return count
  }
}

extension Component {
  fileprivate func side() throws(PEFTError) -> Truncation.Side {
    let name = try string("direction", default: "Right")
    switch name {
    case "Right", "right": return .right
    case "Left", "left": return .left
    default: throw unsupportedSetting("direction", "'\(name)'")
    }
  }
}
