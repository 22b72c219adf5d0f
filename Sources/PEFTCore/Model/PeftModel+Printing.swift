import NN

extension PeftModel {
  /// The model with its adapters as `print(peft_model)` shows it.
  public var printed: PrintedModule {
    guard let first = records.first else { return base.printed }
    let task = first.config.taskType.flatMap { try? registry.taskType($0) }
    return PrintedModule(
      task?.modelClassName ?? "PeftModel",
      children: [
        (
          "base_model",
          PrintedModule(first.tuner.modelTypeName, children: [("model", base.printed)])
        )
      ])
  }
}
