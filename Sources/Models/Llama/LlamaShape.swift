import NN
import PEFTSupport
import Tensors

/// The numbers of a Llama or Qwen2 model.
struct LlamaShape {
  /// "Llama" or "Qwen2", the prefix of the class names.
  let family: String
  let vocabulary: Int
  let hidden: Int
  let layers: Int
  let heads: Int
  let keyValueHeads: Int
  let headDim: Int
  let intermediate: Int
  let positions: Int
  let epsilon: Double
  let isTied: Bool
  let queryKeyValueBias: Bool
  let outputBias: Bool
  let feedForwardBias: Bool
  let attentionDropout: Double
  let rotary: RotaryTable
  let paddingIndex: Int?

  init(_ configuration: ModelConfiguration, family: String) throws(PEFTError) {
    self.family = family
    vocabulary = try configuration.int("vocab_size", default: family == "Qwen2" ? 151936 : 32000)
    hidden = try configuration.int("hidden_size", default: 4096)
    layers = try configuration.int("num_hidden_layers", default: 32)
    heads = try configuration.int("num_attention_heads", default: 32)
    keyValueHeads = try configuration.int("num_key_value_heads", default: heads)
    headDim = try configuration.int("head_dim", default: max(hidden / heads, 1))
    intermediate = try configuration.int(
      "intermediate_size", default: family == "Qwen2" ? 22016 : 11008)
    positions = try configuration.int("max_position_embeddings", default: 2048)
    epsilon = try configuration.double("rms_norm_eps", default: 1e-6)
    isTied = try configuration.bool("tie_word_embeddings", default: false)
    // Qwen2 has biases on q, k and v by design and knows no key for it.
    let bias = try configuration.bool("attention_bias", default: false)
    queryKeyValueBias = family == "Qwen2" || bias
    outputBias = family != "Qwen2" && bias
    feedForwardBias =
      family == "Qwen2" ? false : try configuration.bool("mlp_bias", default: false)
    attentionDropout = try configuration.probability("attention_dropout", default: 0)
    paddingIndex = try configuration.optionalInt("pad_token_id")
    guard headDim <= 1 << 16 else {
      throw PEFTError(
        .invalidConfiguration, "heads of width \(headDim) are wider than any model's",
        at: configuration.path)
    }
    rotary = try RotaryTable(configuration, headDim: headDim)
    let activation = try configuration.string("hidden_act", default: "silu")
    if activation != "silu" { throw configuration.unsupported("hidden_act", "'\(activation)'") }
    if try configuration.bool("use_sliding_window", default: false) {
      throw configuration.unsupported("use_sliding_window", "true")
    }
    guard heads % keyValueHeads == 0, headDim % 2 == 0 else {
      throw PEFTError(
        .invalidConfiguration,
        "\(heads) attention heads with \(keyValueHeads) key-value heads of width \(headDim) do "
          + "not fit together", at: configuration.path)
    }
  }
}

extension RotaryTable {
  /// The table that `rope_theta` and `rope_scaling` (since transformers 5 `rope_parameters`) ask
  /// for: types default, linear and llama3.
  init(_ configuration: ModelConfiguration, headDim: Int) throws(PEFTError) {
    let key =
      configuration["rope_parameters"]?.object == nil
      ? "rope_scaling" : "rope_parameters"
    let parameters = configuration[key]?.object ?? JSONObject()
    let scaling = ModelConfiguration(parameters, path: "\(configuration.path), '\(key)'")
    let base = try scaling.positive(
      "rope_theta", default: configuration.positive("rope_theta", default: 10000))
    let type = try scaling.string("rope_type", default: scaling.string("type", default: "default"))
    let standard = RotaryTable(base: base, headDim: headDim)
    switch type {
    case "default": self = standard
    case "linear":
      let factor = try scaling.positive("factor")
      self = standard.mapFrequencies { $0 / factor }
    case "llama3":
      let factor = try scaling.positive("factor")
      let low = try scaling.positive("low_freq_factor")
      let high = try scaling.positive("high_freq_factor")
      let context = try scaling.positive("original_max_position_embeddings")
      guard low < high else {
        throw PEFTError(
          .invalidConfiguration,
          "'low_freq_factor' is \(low), a number below 'high_freq_factor', \(high), was expected",
          at: scaling.path)
      }
      self = standard.mapFrequencies { frequency in
        // Long wavelengths are stretched, short ones kept, those between interpolated.
        let wavelength = 2 * Double.pi / frequency
        if wavelength < context / high { return frequency }
        if wavelength > context / low { return frequency / factor }
        let smooth = (context / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency
      }
    default: throw configuration.unsupported(key, "type '\(type)'")
    }
  }
}
