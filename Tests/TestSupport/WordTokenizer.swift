/// A `tokenizer.json` of BERT's kind over a few words.
public enum WordTokenizer {
  /// The text of the file: [PAD], [UNK], [CLS] and [SEP] are 0 to 3, words follow.
  public static func json(_ words: [String]) -> String {
    let all = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + words
    let vocabulary = all.enumerated().map { "\"\($1)\": \($0)" }.joined(separator: ", ")
    return """
      {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {\(vocabulary)}},
       "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true},
       "pre_tokenizer": {"type": "BertPreTokenizer"},
       "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
       "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}}
      """
  }
}
