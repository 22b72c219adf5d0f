import OutputScale
import PEFT

/// Teaches a tuner a kind of layer that its author did not think of: output scales on embeddings.
///
/// An application's own dispatchers are asked before the tuner's.
struct EmbeddingDispatcher: Dispatcher {
  var supports: String { "Embedding" }

  func makeLayer(for site: AdapterSite) throws(PEFTError) -> (any TunerLayer)? {
    guard site.host is Embedding, let config = site.config as? OutputScaleConfig else {
      return nil
    }
    return OutputScaleLayer(site, config, axis: .columns)
  }
}
