/// What went wrong, where, and what to do about it.
///
/// One error type serves the whole package. ``code`` is open: a later version,
/// or a third party, may add codes without breaking a `switch`. ``message``
/// states what was expected and what was found; ``location`` names the file,
/// key, flag or module; ``remedy`` says what the reader can do.
public struct PEFTError: Error, Sendable {
  /// The kind of a failure, for programs that act on it.
  public struct Code: Hashable, Sendable, CustomStringConvertible {
    /// The text for messages.
    public let description: String

    /// Creates a code; third parties should prefix theirs with their module name.
    public init(_ description: String) {
      self.description = description
    }

    /// A file or folder does not exist or cannot be opened.
    public static let fileNotFound = Code("fileNotFound")
    /// Reading or writing failed: permissions, a full disk, a device error.
    public static let fileAccess = Code("fileAccess")
    /// A file's content does not follow its format.
    public static let malformedFile = Code("malformedFile")
    /// A tensor that is needed is not in the file.
    public static let missingTensor = Code("missingTensor")
    /// A tensor in the file belongs to nothing.
    public static let unexpectedTensor = Code("unexpectedTensor")
    /// A tensor has another shape or type than its place.
    public static let shapeMismatch = Code("shapeMismatch")
    /// A configuration key or value is wrong.
    public static let invalidConfiguration = Code("invalidConfiguration")
    /// A known feature that this version does not provide.
    public static let unsupported = Code("unsupported")
    /// No module of the model matches the adapter's targets.
    public static let noMatchingModule = Code("noMatchingModule")
    /// An adapter name is unknown, taken, or not usable here.
    public static let invalidAdapter = Code("invalidAdapter")
    /// The operation does not fit the state (merged, disabled, training).
    public static let invalidState = Code("invalidState")
    /// The data set is empty, malformed or does not fit the task.
    public static let invalidData = Code("invalidData")
    /// A number is not finite, or a decomposition failed.
    public static let numericalFailure = Code("numericalFailure")
  }

  /// The kind of the failure.
  public let code: Code
  /// What was expected and what was found.
  public let message: String
  /// The file, key, flag or module concerned.
  public let location: String?
  /// What to do about it.
  public let remedy: String?

  /// Creates an error.
  ///
  /// - Parameters:
  ///   - code: The kind of failure.
  ///   - message: What was expected and what was found.
  ///   - location: The file, key, flag or module concerned.
  ///   - remedy: What to do about it.
  public init(_ code: Code, _ message: String, at location: String? = nil, remedy: String? = nil) {
    self.code = code
    self.message = message
    self.location = location
    self.remedy = remedy
  }

  /// The same error with a location, unless it has one.
  public func located(at place: String) -> PEFTError {
    PEFTError(code, message, at: location ?? place, remedy: remedy)
  }
}

extension PEFTError: CustomStringConvertible {
  /// The text for messages.
  public var description: String {
    var text = location.map { "\($0): \(message)" } ?? message
    if let remedy {
      text += text.hasSuffix(".") ? " \(remedy)" : ". \(remedy)"
    }
    return text
  }
}
