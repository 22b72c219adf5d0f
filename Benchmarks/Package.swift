// swift-tools-version: 6.2
import PackageDescription

let package = Package(
  name: "Benchmarks",
  platforms: [.macOS(.v15)],
  dependencies: [.package(name: "swift-peft", path: "..")],
  targets: [
    .executableTarget(
      name: "kernels-bench",
      dependencies: [.product(name: "BLASKernels", package: "swift-peft")],
      swiftSettings: [.swiftLanguageMode(.v6)]),
    .executableTarget(
      name: "adapters-bench",
      dependencies: [
        .product(name: "PEFT", package: "swift-peft"),
        .product(name: "BLASKernels", package: "swift-peft"),
      ],
      swiftSettings: [.swiftLanguageMode(.v6)]),
    .executableTarget(
      name: "methods-bench",
      dependencies: [.product(name: "PEFT", package: "swift-peft")],
      swiftSettings: [.swiftLanguageMode(.v6)]),
  ]
)
