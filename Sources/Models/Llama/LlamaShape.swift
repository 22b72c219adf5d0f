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
      configuration.object["rope_parameters"]?.object == nil
      ? "rope_scaling" : "rope_parameters"
    let parameters = configuration.object[key]?.object ?? JSONObject()
    let scaling = ModelConfiguration(parameters, path: "\(configuration.path), '\(key)'")
    let base = try scaling.double(
      "rope_theta", default: configuration.double("rope_theta", default: 10000))
    let type = try scaling.string("rope_type", default: scaling.string("type", default: "default"))
    let standard = RotaryTable(base: base, headDim: headDim)
    switch type {
    case "default": self = standard
    case "linear":
      let factor = try scaling.double("factor", default: 1)
      self = standard.mapFrequencies { $0 / factor }
    case "llama3":
      let factor = try scaling.double("factor", default: 8)
      let low = try scaling.double("low_freq_factor", default: 1)
      let high = try scaling.double("high_freq_factor", default: 4)
      let context = try scaling.double("original_max_position_embeddings", default: 8192)
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
