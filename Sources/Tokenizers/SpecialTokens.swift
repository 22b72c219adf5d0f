import PEFTSupport

/// The ids of the tokens with a role.
struct SpecialTokenIDs: Sendable {
  var bos: Int32?
  var eos: Int32?
  var pad: Int32?
  var unknown: Int32?
  var separator: Int32?
  var classification: Int32?
  var mask: Int32?

  /// Finds the tokens.
  ///
  /// `tokenizer_config.json` names them, then `special_tokens_map.json`; an explicit `null` means
  /// that there is none. For a role that neither mentions, what `tokenizer.json` says counts, and
  /// last the usual names, as far as they are special tokens of this vocabulary.
  init(
    file: TokenizerFile, folder: String?, added: AddedTokens, model: Model
  ) throws(PEFTError) {
    var sources: [JSONValue] = []
    if let folder {
      for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = FileSystem.join(folder, name)
        if FileSystem.exists(path) { sources.append(try FileSystem.readJSON(path)) }
      }
    }
    func find(_ key: String, _ known: Int32?, _ usual: [String]) -> Int32? {
      for source in sources {
        guard let value = source[key] else { continue }
        guard let name = value.string ?? value["content"]?.string else { return nil }
        return TokenizerCore.id(of: Array(name.utf8), added, model)
      }
      if let known { return known }
      for name in usual {
        if let id = added.ids[Array(name.utf8)], added.specialIDs.contains(id) { return id }
      }
      return nil
    }
    let padding = file.members["padding"]?["pad_token"]?.string
    let usualEnd = ["</s>", "<|endoftext|>"]
    bos = find("bos_token", nil, ["<s>", "<|endoftext|>"])
    eos = find("eos_token", nil, usualEnd)
    unknown = find("unk_token", model.unknownID, ["<unk>", "[UNK]"])
    separator = find("sep_token", nil, ["[SEP]"])
    classification = find("cls_token", nil, ["[CLS]"])
    mask = find("mask_token", nil, ["[MASK]", "<mask>"])
    pad = find(
      "pad_token", padding.flatMap { TokenizerCore.id(of: Array($0.utf8), added, model) },
      ["<pad>", "[PAD]"])
    if mask != nil, classification == nil, separator == nil {
      // RoBERTa begins and ends its input with the tokens that it also uses as these two.
      classification = find("cls_token", bos, [])
      separator = find("sep_token", eos, [])
    }
  }
}
