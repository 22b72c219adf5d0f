import NN
import PEFTSupport
import Tensors

/// What an adapter is to be put on, before anything is put anywhere.
struct TargetPlan {
  /// A host that gets a layer.
  struct Site: Equatable {
    /// Index into the model's hosts.
    let place: Int
    /// What rank patterns are matched against: the path of the module that was targeted, which is
    /// the host or what is around it, or that of the parameter.
    let path: String
    /// The path that the keys of its tensors begin with in files: peft wraps a layer that is
    /// adapted, and what is inside of it becomes part of its `base_layer`.
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
  /// Paths that the config targets, but the state does not that decided about the layers.
  var additionalInConfig: [String] = []
  /// Paths that this state has adapters for, but the config does not target.
  var additionalInState: [String] = []
  /// What was odd, in peft's words.
  var warnings: [String] = []

  /// Leaves out the sites whose hosts' paths are not among the given ones.
  mutating func keep(_ kept: [String], among paths: [String]) {
    if kept.count == sites.count { return }
    let kept = Set(kept)
    sites.removeAll { !kept.contains(paths[$0.place]) }
  }
}

/// What came of adding an adapter.
public struct TargetReport: Equatable, Sendable {
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
  /// Paths that the config targets, but the state does not that decided about the layers.
  public internal(set) var additionalInConfig: [String] = []
  /// Paths that this state has adapters for, but the config does not target.
  public internal(set) var additionalInState: [String] = []

  /// What hints at a mistake in the config: the warnings, and the entries that match nothing.
  public var remarks: [String] {
    guard !unmatched.isEmpty else { return warnings }
    return warnings + ["no module matches the target \(PythonText.list(unmatched))"]
  }
}

/// Where the values of a new adapter come from.
struct AdapterOrigin {
  /// Who decides which layers are adapted.
  enum Layers {
    /// The config's targets.
    case targeted
    /// The keys of a state.
    case named(by: [String])
    /// Another adapter, by the places of its layers.
    case like([TargetPlan.Site])
  }

  /// Which layers are adapted.
  var layers = Layers.targeted
  /// The keys of the file that it is read from next.
  var fileKeys: Set<String>?
  /// What the files have for ``TunerLayer/referenceTensors``.
  var references: (any TensorFile)?
  /// Whether it was made before, so that it begins with no data.
  var existed = false
  /// Whether all values are read from a file next, so that initial ones need not be computed.
  var isLoading = false
}
