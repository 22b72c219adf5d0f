import NN
import PEFTCore
import PEFTSupport
import Tensors
import TestSupport
import Testing

/// All of a model that a refused call may not change, to the bit.
struct Snapshot: Equatable {
  private let names: [String]
  private let active: [String]
  private let merged: [String]
  private let printed: String
  private var configs: [JSONObject] = []
  private var values: [String: [UInt32]] = [:]
  private var trainable: Set<String> = []

  init(_ peft: PeftModel) throws {
    names = peft.adapterNames
    active = peft.activeAdapters
    merged = peft.mergedAdapters
    printed = peft.printed.text
    func bits(_ tensor: Tensor) -> [UInt32] { tensor.scalars.map(\.bitPattern) }
    for name in names {
      configs.append(try peft.config(name).object)
      for tensor in try peft.tensors(of: name) {
        let key = "\(name): \(tensor.key)"
        values[key] = bits(tensor.parameter.value)
        if tensor.parameter.isTrainable { trainable.insert(key) }
      }
    }
    for (path, module) in peft.base.namedModules() {
      guard let host = module as? any AdapterHost else { continue }
      values[path] = bits(host.parameters.storedWeight)
      values["\(path).bias"] = host.parameters.bias.map { bits($0.value) }
    }
  }
}

/// The error of a call, whose text, code and place are given. Texts that are not peft's, which
/// often say so themselves, say in a remedy what to do.
func expectError(
  _ text: String, _ code: PEFTError.Code, at location: String? = nil, isPefts: Bool = false,
  sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) {
  let error = #expect(throws: PEFTError.self, sourceLocation: sourceLocation) { try body() }
  #expect(error?.message == text, sourceLocation: sourceLocation)
  #expect(error?.code == code, sourceLocation: sourceLocation)
  #expect(error?.location == location, sourceLocation: sourceLocation)
  if isPefts {
    // Its texts also say what to do, which is the remedy here.
    #expect(
      peftsTexts.contains { $0.hasPrefix(text) }, "not a text of peft's",
      sourceLocation: sourceLocation)
  } else {
    #expect(
      error?.remedy != nil || text.contains("please"), "no remedy", sourceLocation: sourceLocation)
  }
}

/// The texts of peft's errors in Tests/Goldens/conformance.json.
private let peftsTexts: Set<String> = {
  let file = try? FileSystem.readJSON(TestData.golden("conformance.json"))
  let steps = (file?["cases"]?.array ?? []).flatMap { $0["steps"]?.array ?? [] }
  return Set(steps.compactMap { $0["error"]?["text"]?.string })
}()

extension PeftModel {
  /// A call that is refused and leaves the model as it was.
  func refuses(
    _ text: String, _ code: PEFTError.Code, at location: String? = nil, isPefts: Bool = false,
    sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
  ) throws {
    let before = try Snapshot(self)
    expectError(text, code, at: location, isPefts: isPefts, sourceLocation: sourceLocation, body)
    #expect(
      try Snapshot(self) == before, "the model has changed", sourceLocation: sourceLocation)
  }
}
