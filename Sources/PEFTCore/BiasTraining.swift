import Tensors

/// Which biases of the base model an adapter trains, the key `bias`.
public enum BiasTraining: String, Sendable {
  /// None.
  case none
  /// Every bias of the model.
  case all
  /// Those of the adapted layers.
  case adaptedOnly = "lora_only"
}

/// The bias of one host while an adapter trains it.
///
/// The parameter stays the host's own, as in peft, so that it has the base's name and is counted
/// once; the values from before are kept for everyone but the adapter.
struct TrainedBias {
  /// The adapter's place in the selection.
  let place: Int
  /// The host's bias.
  let trained: Parameter
  /// The bias as it was.
  let untrained: Parameter

  init(_ place: Int, _ bias: Parameter) {
    self.place = place
    trained = bias
    untrained = Parameter(bias.value, isTrainable: false)
  }
}
