#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// Where the real models and data sets are that some tests need; none of them is in the repository.
public enum TestData {
  /// The path of a file or folder of the test data, or `nil`, with a notice, where it is absent.
  ///
  /// The data is at `PEFT_TEST_DATA`, else in `../shared/data` beside the package; the model that
  /// `scripts/setup --model` fetches is in `.cache`.
  public static func path(_ relative: String) -> String? {
    for folder in [root, "\(package)/.cache"] {
      let path = "\(folder)/\(relative)"
      if access(path, F_OK) == 0 { return path }
    }
    print("skipped: no test data at \(root)/\(relative); set PEFT_TEST_DATA")
    return nil
  }

  /// The path of a committed golden, under Tests/Goldens.
  public static func golden(_ relative: String) -> String { "\(package)/Tests/Goldens/\(relative)" }

  /// The package's folder.
  public static var package: String {
    // Tests/TestSupport/TestData.swift is three levels below it.
    "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
  }

  private static var root: String {
    if let path = getenv("PEFT_TEST_DATA") { return String(cString: path) }
    return "\(package)/../shared/data"
  }
}
