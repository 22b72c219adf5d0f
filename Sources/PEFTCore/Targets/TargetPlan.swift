import NN
import PEFTSupport

/// What an adapter is to be put on, before anything is put anywhere.
struct TargetPlan {
  /// A host that gets a layer.
  struct Site {
    /// Index into the model's hosts.
    let place: Int
    /// What rank patterns are matched against: the module's path, or that of the parameter.
    let path: String
    /// What the keys of its tensors begin with.
    var prefix: String
    /// The parameter, where it is not the module as a whole.
    var parameter: String?
    /// Index of the host whose layer this one shares.
    var tiedTo: Int?
  }

  /// Hosts that get a layer, in model order; tied ones last.
  var sites: [Site] = []
  /// Hosts that are trained in full.
  var saved: [Int] = []
  /// Paths of the modules that were asked for to be trained in full.
  var savedPaths: [String] = []
  /// Trained rows, by host; with the host that they are shared with.
  var tokens: [(place: Int, indices: [Int], tiedTo: Int?)] = []
  /// Hosts trained in full that share the copy of another.
  var savedTies: [(place: Int, tiedTo: Int)] = []
  /// What was odd, in peft's words.
  var warnings: [String] = []
}

/// What came of adding an adapter.
public struct TargetReport: Sendable {
  /// Paths of the adapted modules and parameters.
  public internal(set) var matched: [String] = []
  /// Paths of the modules trained in full, down to single layers.
  public internal(set) var saved: [String] = []
  /// Paths of the modules that `modules_to_save` named.
  public internal(set) var savedModules: [String] = []
  /// Entries of `target_modules` and `target_parameters` that match nothing. peft says nothing of
  /// them as long as another entry matches.
  public internal(set) var unmatched: [String] = []
  /// What peft warns of, in its words.
  public internal(set) var warnings: [String] = []
}
