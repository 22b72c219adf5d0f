import Models
import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport

/// The language model that the adapters of Tests/Goldens/files are for: two layers, 40 tokens.
public enum SmallModel {
  /// Its folder.
  public static let folder = TestData.golden("files/model")
  /// Two sequences of five tokens.
  public static let batch = TokenBatch([[5, 17, 30, 2, 9], [39, 3, 3, 11, 28]])

  /// Loads it, or a language model that is stored elsewhere, to put adapters of some methods on it.
  public static func load(
    _ registry: TunerRegistry, from folder: String = Self.folder
  ) throws -> PeftModel {
    let loaded = try ModelLoader.load(folder)
    return PeftModel(
      loaded.model,
      info: BaseModelInfo(modelType: "llama", nameOrPath: folder, outputHeads: loaded.outputHeads),
      registry: registry)
  }
}

extension PeftModel {
  /// The logits of a language model in evaluation mode, `[tokens, vocabulary]`, with the active
  /// adapters or with one for each sequence.
  public func logits(
    of batch: TokenBatch = SmallModel.batch, rows: [String]? = nil
  ) throws -> Tensor {
    guard let model = base as? any CausalLanguageModel else {
      throw PEFTError(.unsupported, "not a language model")
    }
    var context = ForwardContext(batch.layout)
    context.sequenceAdapters = try rows.map { try sequenceAdapters($0) }
    return withoutGradients { model.logits(batch, context) }
  }
}
