// swift-tools-version: 6.2
import PackageDescription

let swiftSettings: [SwiftSetting] =
  [.swiftLanguageMode(.v6)]
  // Set by scripts/test; those who only use the package get warnings as warnings.
  + (Context.environment["PEFT_WARNINGS_AS_ERRORS"] == nil ? [] : [.treatAllWarnings(as: .error)])

/// Kernels without optimisation are a hundred times slower, and debug builds and tests use them too. SwiftPM refuses such flags
/// in a dependency that is given by version; there only release builds are fast.
let kernelSettings: [CSetting] =
  Context.packageDirectory.contains("/checkouts/")
  ? [] : [.unsafeFlags(["-O2"], .when(configuration: .debug))]

/// A library target and the test target that goes with it.
func module(
  _ name: String, _ dependencies: [Target.Dependency], testing: [Target.Dependency] = []
) -> [Target] {
  [
    .target(name: name, dependencies: dependencies, swiftSettings: swiftSettings),
    .testTarget(
      name: "\(name)Tests",
      dependencies: [.target(name: name), "TestSupport"] + dependencies + testing,
      swiftSettings: swiftSettings),
  ]
}

// A target names all that it imports: it is compiled anew after changes of those that it names, not of
// those that come along with them.
let tensors: [Target.Dependency] = ["Tensors", "BLASKernels", "PEFTSupport"]
let adapters: [Target.Dependency] = ["PEFTCore", "NN"] + tensors
/// What `import PEFT` gives.
let umbrella: [Target.Dependency] =
  ["Training", "Models", "Tokenizers", "TunerLoRA", "TunerDoRA", "TunerEDoRA"] + adapters

let package = Package(
  name: "swift-peft",
  platforms: [.macOS(.v15)],
  products: [
    .library(name: "PEFT", targets: ["PEFT"]),
    // What a tuner is written against.
    .library(name: "PEFTCore", targets: ["PEFTCore", "NN", "Tensors", "PEFTSupport"]),
    .library(name: "BLASKernels", targets: ["BLASKernels"]),
    .library(name: "TunerLoRA", targets: ["TunerLoRA"]),
    .library(name: "TunerDoRA", targets: ["TunerDoRA"]),
    .library(name: "TunerEDoRA", targets: ["TunerEDoRA"]),
    .library(name: "Models", targets: ["Models"]),
    .executable(name: "peft", targets: ["PEFTCommand"]),
  ],
  traits: [
    .default(enabledTraits: ["OneDNN"]),
    .trait(
      name: "OneDNN",
      description: "Dense GEMM on oneDNN. Without it everything works on OpenBLAS, slower."),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.0.0"),
  ],
  targets: [
    // System libraries and C.
    .systemLibrary(
      name: "COneDNN", providers: [.apt(["libdnnl-dev"]), .brew(["onednn"])]),
    .systemLibrary(
      name: "COpenBLAS", pkgConfig: "openblas",
      providers: [
        .apt(["libopenblas-openmp-dev", "libopenblas-dev"]), .brew(["openblas"]),
      ]),
    .target(
      name: "CKernels",
      dependencies: [
        "COpenBLAS",
        .target(name: "COneDNN", condition: .when(traits: ["OneDNN"])),
      ],
      cSettings: [.define("PEFT_ONEDNN", .when(traits: ["OneDNN"]))] + kernelSettings,
      linkerSettings: [
        .linkedLibrary("openblas"), .linkedLibrary("dnnl", .when(traits: ["OneDNN"])),
        .linkedLibrary("gomp", .when(platforms: [.linux])), .linkedLibrary("m"),
      ]),

    // Shared by the tests: where the real models are, and approximate comparison.
    .target(name: "TestSupport", path: "Tests/TestSupport", swiftSettings: swiftSettings),
    // Models of one layer with goldens, for the tests of tuners.
    .target(
      name: "LayerTestSupport", dependencies: ["TestSupport", "Models"] + adapters,
      path: "Tests/LayerTestSupport", swiftSettings: swiftSettings),
  ]
    // Kernels, tensors, modules.
    + module("PEFTSupport", [])
    + module("BLASKernels", ["CKernels", "PEFTSupport"])
    + module("Tensors", ["BLASKernels", "PEFTSupport"])
    + module("NN", tensors)
    // Adapters.
    + module("PEFTCore", ["NN"] + tensors, testing: ["LayerTestSupport"])
    + module("TunerLoRA", adapters, testing: ["Models", "LayerTestSupport"])
    + module("TunerDoRA", ["TunerLoRA"] + adapters, testing: ["Models", "LayerTestSupport"])
    + module(
      "TunerEDoRA", ["TunerDoRA", "TunerLoRA"] + adapters,
      testing: ["Models", "LayerTestSupport"])
    // Models and training.
    + module("Tokenizers", ["PEFTSupport"])
    + module("Models", ["NN"] + tensors)
    + module(
      "Training", ["Models", "Tokenizers"] + adapters,
      testing: ["TunerLoRA", "TunerDoRA", "TunerEDoRA"])
    + module("PEFT", umbrella, testing: ["LayerTestSupport"])
    // The tool.
    + [
      .executableTarget(
        name: "PEFTCommand",
        dependencies: ["PEFT"] + umbrella + [
          "Yams", .product(name: "ArgumentParser", package: "swift-argument-parser"),
        ],
        swiftSettings: swiftSettings),
      // What the live round trip runs beside the tool.
      .executableTarget(
        name: "layer-runner", dependencies: ["PEFT", "LayerTestSupport"] + umbrella,
        path: "Tests/LayerRunner", swiftSettings: swiftSettings),
      .testTarget(
        name: "PEFTCommandTests", dependencies: ["PEFTCommand", "PEFT", "TestSupport"] + umbrella,
        swiftSettings: swiftSettings),
    ]
)
