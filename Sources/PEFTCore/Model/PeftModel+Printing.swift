import NN

extension PeftModel {
  /// The model with its adapters as `print(peft_model)` shows it.
  ///
  /// Layers of different methods on one host are shown one around the other: a LoRA and a DoRA
  /// adapter as two `lora.Linear`, where peft has both in one.
  public var printed: PrintedModule {
    guard let first = records.first else { return base.printed }
    let task = first.config.taskType.flatMap { try? registry.taskType($0) }
    return PrintedModule(
      task?.modelClassName ?? "PeftModel",
      children: [
        (
          "base_model",
          PrintedModule(
            first.tuner.modelTypeName, children: [("model", printed(base, path: ""))])
        )
      ])
  }

  /// One module as peft prints it within the model.
  func printed(path: String) -> PrintedModule {
    modules.first { $0.path == path }.map { printed($0.module, path: path) }
      ?? PrintedModule(path)
  }

  private func printed(_ module: any Module, path: String) -> PrintedModule {
    var result = PrintedModule(
      module.typeName, attributes: module.attributes,
      children: module.children.map { name, child in
        (name, printed(child, path: path.isEmpty ? name : "\(path).\(name)"))
      })
    for (_, host) in module.weightHosts {
      if let adapters = host.adapters { result = adapters.printed(around: result) }
    }
    if let adapters = (module as? any AdapterHost)?.adapters {
      result = adapters.printed(around: result)
    }
    let owners = records.filter { $0.savedPaths.contains(path) }.map(\.name)
    if owners.isEmpty { return result }
    return PrintedModule(
      "ModulesToSaveWrapper",
      children: [
        ("original_module", result),
        ("modules_to_save", PrintedModule("ModuleDict", children: owners.map { ($0, result) })),
      ])
  }
}
