import PEFTSupport

/// The `README.md` of an adapter folder, with the front matter that the Hub reads.
struct ModelCard {
  let config: any TunerConfig
  let body: String?

  var text: String {
    var lines = ["---"]
    if let base = config.baseModel { lines.append("base_model: \(JSONValue.string(base).text())") }
    lines.append("library_name: peft")
    switch config.taskType {
    case "CAUSAL_LM": lines.append("pipeline_tag: text-generation")
    case "SEQ_CLS": lines.append("pipeline_tag: text-classification")
    default: break
    }
    lines.append("tags:")
    if let base = config.baseModel {
      lines.append("- \(JSONValue.string("base_model:adapter:\(base)").text())")
    }
    if let type = config.object["peft_type"]?.string { lines.append("- \(type.lowercased())") }
    lines += ["---", ""]
    lines.append(body ?? "# Adapter\n\nAn adapter in the format of Hugging Face PEFT.")
    return lines.joined(separator: "\n") + "\n"
  }
}
