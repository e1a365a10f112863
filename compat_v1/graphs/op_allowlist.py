"""The operations that a graph from somebody else may run here, each looked at: they compute, and nothing more.

A list of what is allowed, not of what is refused: an operation of a later TensorFlow is refused until it was
looked at. Left out on purpose, though they are harmless by their description: decoders and encoders of images, sound,
protocol buffers and archives (native code on bytes of the file), kernels that TensorFlow makes for itself (a leading
underscore), and what no inference graph needs.
"""

from __future__ import annotations

_STRUCTURE = """
    Const Placeholder PlaceholderV2 PlaceholderWithDefault NoOp Identity IdentityN Snapshot StopGradient PreventGradient
    GuaranteeConst EnsureShape Assert CheckNumerics ControlTrigger
"""
_VARIABLES = "ReadVariableOp ResourceGather ResourceGatherNd VariableShape VarIsInitializedOp"
_CONTROL_FLOW = """
    Switch Merge Enter Exit NextIteration LoopCond If StatelessIf While StatelessWhile Case StatelessCase
    PartitionedCall StatefulPartitionedCall FakeParam
    TensorArrayV3 TensorArrayReadV3 TensorArrayWriteV3 TensorArrayGatherV3 TensorArrayScatterV3 TensorArraySplitV3
    TensorArrayConcatV3 TensorArraySizeV3 TensorArrayCloseV3 StackV2 StackPushV2 StackPopV2 StackCloseV2
    EmptyTensorList TensorListReserve TensorListFromTensor TensorListStack TensorListGetItem TensorListSetItem
    TensorListLength TensorListElementShape TensorListPushBack TensorListPopBack TensorListGather TensorListScatter
    TensorListScatterV2 TensorListConcat TensorListConcatV2 TensorListConcatLists TensorListSplit TensorListResize
"""
_SHAPES = """
    Shape ShapeN Size Rank Reshape Squeeze ExpandDims Fill ZerosLike OnesLike Range LinSpace Tile BroadcastTo BroadcastArgs
    BroadcastGradientArgs Pack Unpack Concat ConcatV2 ConcatOffset Split SplitV Slice StridedSlice Gather GatherV2 GatherNd
    ScatterNd TensorScatterAdd TensorScatterSub TensorScatterUpdate TensorScatterMax TensorScatterMin Transpose
    ConjugateTranspose InvertPermutation Pad PadV2 MirrorPad Reverse ReverseV2 ReverseSequence Roll Where OneHot DiagPart
    Diag MatrixDiag MatrixDiagV2 MatrixDiagV3 MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixSetDiag
    MatrixSetDiagV2 MatrixSetDiagV3 MatrixBandPart DynamicPartition DynamicStitch ParallelDynamicStitch Unique UniqueV2
    UniqueWithCounts UniqueWithCountsV2 ListDiff SpaceToBatch SpaceToBatchND BatchToSpace BatchToSpaceND SpaceToDepth
    DepthToSpace ExtractImagePatches ExtractVolumePatches Cast Bitcast DataFormatDimMap DataFormatVecPermute
    UnravelIndex LowerBound UpperBound Bucketize
"""
_ARITHMETIC = """
    Abs Acos Acosh Add AddN AddV2 AccumulateNV2 All Angle Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh
    BesselI0 BesselI0e BesselI1 BesselI1e Betainc BitwiseAnd BitwiseOr BitwiseXor Ceil ClipByValue Complex ComplexAbs Conj
    Cos Cosh Cross CumulativeLogsumexp Cumprod Cumsum Digamma Div DivNoNan Equal Erf Erfc Erfinv EuclideanNorm Exp Expm1
    Floor FloorDiv FloorMod Greater GreaterEqual HistogramFixedWidth Igamma Igammac Imag InTopK InTopKV2 Inv Invert IsFinite
    IsInf IsNan LeftShift Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr Max Maximum Mean Min Minimum Mod
    Mul MulNoNan Ndtri Neg NextAfter NotEqual NthElement Polygamma PopulationCount Pow Prod Real RealDiv Reciprocal
    RightShift Rint Round Rsqrt Select SelectV2 Sigmoid Sign Sin Sinh Sqrt Square SquaredDifference Sub Sum Tan Tanh TopK
    TopKV2 TruncateDiv TruncateMod Xdivy Xlog1py Xlogy Zeta SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum
    UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum
"""
_LINEAR_ALGEBRA = """
    BatchMatMul BatchMatMulV2 BatchMatMulV3 Cholesky Einsum Eig FFT FFT2D FFT3D IFFT IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D
    LogMatrixDeterminant Lu MatMul MatrixDeterminant MatrixInverse MatrixSolve MatrixSolveLs MatrixSquareRoot
    MatrixTriangularSolve Qr RFFT RFFT2D RFFT3D SelfAdjointEig SelfAdjointEigV2 Svd
"""
_NETWORKS = """
    AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BiasAddV1 BlockLSTM BlockLSTMV2 Conv2D Conv2DBackpropInput
    Conv3D Conv3DBackpropInputV2 CTCBeamSearchDecoder CTCGreedyDecoder CTCLoss CTCLossV2 DepthwiseConv2dNative
    DepthwiseConv2dNativeBackpropInput Dilation2D Elu FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
    FakeQuantWithMinMaxVarsPerChannel FractionalAvgPool FractionalMaxPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3
    GRUBlockCell L2Loss LeakyRelu LogSoftmax LRN LSTMBlockCell MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax
    QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 Relu Relu6 Selu Softmax
    SoftmaxCrossEntropyWithLogits Softplus Softsign SparseSoftmaxCrossEntropyWithLogits
"""
_IMAGES = """
    AdjustContrastv2 AdjustHue AdjustSaturation CombinedNonMaxSuppression CropAndResize ExtractGlimpse ExtractGlimpseV2
    HSVToRGB ImageProjectiveTransformV2 ImageProjectiveTransformV3 NonMaxSuppression NonMaxSuppressionV2
    NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps ResizeArea ResizeBicubic
    ResizeBilinear ResizeNearestNeighbor RGBToHSV ScaleAndTranslate
"""
_RANDOM = """
    RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal ParameterizedTruncatedNormal RandomShuffle
    RandomGamma RandomPoisson RandomPoissonV2 Multinomial StatelessRandomUniform StatelessRandomUniformV2
    StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
    StatelessRandomNormal StatelessRandomNormalV2 StatelessTruncatedNormal StatelessTruncatedNormalV2 StatelessMultinomial
    StatelessRandomGetKeyCounter StatelessRandomGetAlg StatelessRandomGetKeyCounterAlg
"""
_SPARSE = """
    SparseAdd SparseConcat SparseCross SparseDenseCwiseAdd SparseDenseCwiseDiv SparseDenseCwiseMul SparseFillEmptyRows
    SparseMatMul SparseReduceMax SparseReduceSum SparseReorder SparseReshape SparseSegmentMean
    SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNWithNumSegments SparseSegmentSum
    SparseSegmentSumWithNumSegments SparseSlice SparseSoftmax SparseSplit SparseTensorDenseAdd SparseTensorDenseMatMul
    SparseToDense RaggedGather RaggedRange RaggedTensorToSparse RaggedTensorToTensor
"""
_TEXT = """
    AsString LookupTableFindV2 LookupTableSizeV2 ParseExample ParseExampleV2 ReduceJoin RegexFullMatch RegexReplace
    StaticRegexFullMatch StaticRegexReplace StringJoin StringLength StringLower StringNGrams StringSplit StringSplitV2
    StringStrip StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper Substr
    UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript UnicodeTranscode UnsortedSegmentJoin
"""

# Replaced, in the main graph only, by variables and tables of our own before anything runs.
VARIABLES = frozenset(["VarHandleOp", "VariableV2", "Variable"])
TABLES = frozenset(["HashTableV2", "MutableHashTableV2"])
# What fills a table, run once; nowhere else.
FILLS_TABLE = frozenset(["InitializeTableV2", "LookupTableImportV2", "LookupTableInsertV2"])

# Operations of the oldest graphs that have a successor with the same inputs and attributes.
SUCCESSORS = {
    "RefSwitch": "Switch",
    "RefMerge": "Merge",
    "RefEnter": "Enter",
    "RefExit": "Exit",
    "RefNextIteration": "NextIteration",
    "RefIdentity": "Identity",
    "HashTable": "HashTableV2",
    "MutableHashTable": "MutableHashTableV2",
    "InitializeTable": "InitializeTableV2",
    "LookupTableFind": "LookupTableFindV2",
    "LookupTableSize": "LookupTableSizeV2",
    "LookupTableImport": "LookupTableImportV2",
    "LookupTableInsert": "LookupTableInsertV2",
}

FAMILIES: dict[str, frozenset[str]] = {
    name: frozenset(text.split())
    for name, text in {
        "structure": _STRUCTURE,
        "variables": _VARIABLES,
        "control flow": _CONTROL_FLOW,
        "shapes": _SHAPES,
        "arithmetic": _ARITHMETIC,
        "linear algebra": _LINEAR_ALGEBRA,
        "networks": _NETWORKS,
        "images": _IMAGES,
        "random": _RANDOM,
        "sparse": _SPARSE,
        "text": _TEXT,
    }.items()
}
HARMLESS: frozenset[str] = frozenset().union(*FAMILIES.values())
# Draws from a state of its own: two runs differ.
RANDOM = frozenset(name for name in FAMILIES["random"] if not name.startswith("Stateless"))
