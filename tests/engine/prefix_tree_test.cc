#include "shard_worker/engine/prefix_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/prefix_hash.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int kFull = 0;
constexpr int kWindow = 1;

// A chain of blocks of two tokens, each in block i of both pools.
struct Chain {
  explicit Chain(PrefixTree* tree, int length) {
    std::vector<TokenId> tokens;
    for (int i = 0; i < 2 * length; ++i) tokens.push_back(i);
    links = PrefixLinks(0, tokens, 2);
    PrefixNode* parent = nullptr;
    for (int i = 0; i < length; ++i) {
      parent = tree->FindOrInsert(parent, 0, links[i], std::span(tokens).subspan(2 * i, 2));
      for (int pool : {kFull, kWindow}) tree->SetBlock(parent, pool, i);
      nodes.push_back(parent);
    }
  }
  std::vector<uint64_t> links;
  std::vector<PrefixNode*> nodes;
};

TEST(PrefixTree, FindsOnlyTheSameTokensAfterTheSamePrefixWithTheSameSalt) {
  PrefixTree tree({true, true}, 2, 4);
  Chain chain(&tree, 2);
  const std::vector<TokenId> tokens = {2, 3}, others = {2, 4};
  const uint64_t link = chain.links[1];
  EXPECT_EQ(tree.Find(chain.nodes[0], 0, link, tokens), chain.nodes[1]);
  EXPECT_EQ(tree.Find(chain.nodes[0], 0, link, others), nullptr);
  EXPECT_EQ(tree.Find(chain.nodes[0], 1, link, tokens), nullptr);
  EXPECT_EQ(tree.Find(nullptr, 0, link, tokens), nullptr);
  EXPECT_EQ(tree.Find(chain.nodes[0], 0, link + 1, tokens), nullptr);
  EXPECT_EQ(tree.FindOrInsert(chain.nodes[0], 0, link, others), nullptr);  // a collision
}

// A window of 4 tokens after a prefix of blocks of 2 sees 3 tokens: two blocks.
TEST(PrefixTree, PrefixIsUsableIfItsWindowIsComplete) {
  PrefixTree tree({true, true}, 2, 4);
  Chain chain(&tree, 5);
  EXPECT_EQ(tree.Links(), chain.links);
  tree.SetBlock(chain.nodes[1], kWindow, -1);
  EXPECT_THAT(tree.Links(), ElementsAre(chain.links[0], chain.links[3], chain.links[4]));
  EXPECT_TRUE(tree.Check().ok()) << tree.Check();
  tree.SetBlock(chain.nodes[1], kWindow, 7);
  EXPECT_EQ(tree.Links(), chain.links);
}

TEST(PrefixTree, NewsAreNetPerLinkAndInOrder) {
  PrefixTree tree({true, true}, 2, 4);
  Chain chain(&tree, 3);
  EXPECT_EQ(tree.TakeNews().stored, chain.links);
  tree.SetBlock(chain.nodes[1], kWindow, -1);
  tree.SetBlock(chain.nodes[1], kWindow, 1);
  const CacheNews none = tree.TakeNews();
  EXPECT_THAT(none.stored, IsEmpty());
  EXPECT_THAT(none.evicted, IsEmpty());
  tree.SetBlock(chain.nodes[2], kWindow, -1);
  EXPECT_THAT(tree.TakeNews().evicted, ElementsAre(chain.links[2]));
  tree.SetBlock(chain.nodes[2], kFull, -1);  // the node dies, and was no longer told
  EXPECT_THAT(tree.TakeNews().evicted, IsEmpty());
  EXPECT_THAT(tree.Links(), ElementsAre(chain.links[0], chain.links[1]));
}

TEST(PrefixTree, NodeLivesWhileItHasABlockAChildOrAUser) {
  PrefixTree tree({false, true}, 2, 2);
  Chain chain(&tree, 2);
  for (PrefixNode* node : chain.nodes) tree.SetBlock(node, kFull, -1);
  tree.SetBlock(chain.nodes[0], kWindow, -1);  // its child needs it as a parent
  const std::vector<TokenId> tokens = {0, 1};
  EXPECT_EQ(tree.Find(nullptr, 0, chain.links[0], tokens), chain.nodes[0]);
  tree.Hold(chain.nodes[1]);
  tree.SetBlock(chain.nodes[1], kWindow, -1);
  EXPECT_EQ(tree.Find(nullptr, 0, chain.links[0], tokens), chain.nodes[0]);
  tree.Drop(chain.nodes[1]);
  EXPECT_EQ(tree.Find(nullptr, 0, chain.links[0], tokens), nullptr);
}

}  // namespace
}  // namespace facet
