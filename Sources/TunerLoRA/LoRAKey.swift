/// The ends of the names that peft gives to the tensors of LoRA and its relatives.
package enum LoRAKey {
  /// A, of whatever layer but an embedding.
  package static let a = "lora_A.weight"
  /// B, of whatever layer but an embedding.
  package static let b = "lora_B.weight"
  /// The bias of B.
  package static let bias = "lora_B.bias"
  /// A of an embedding.
  static let embeddingA = "lora_embedding_A"
  /// B of an embedding.
  static let embeddingB = "lora_embedding_B"
  /// DoRA's magnitude.
  package static let magnitude = "lora_magnitude_vector"

  static let all = [a, b, bias, embeddingA, embeddingB, magnitude]

  /// Both factors.
  static func factors(ofEmbedding isEmbedding: Bool) -> (a: String, b: String) {
    isEmbedding ? (embeddingA, embeddingB) : (a, b)
  }
}
